/* Runs an exported model with one input and one output: ./example ITEMS < floats > floats */
#include "model.h"
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **words) {
  int items = count > 1 ? atoi(words[1]) : 1;
  size_t reads = items * model_input_floats[0], writes = items * model_output_floats[0];
  model *m = model_open("model.weights");
  float *x = malloc(reads * sizeof *x), *y = malloc(writes * sizeof *y);
  if (!m || !x || !y || fread(x, sizeof *x, reads, stdin) != reads) return 1;
  const float *inputs[] = {x};
  float *outputs[] = {y};
  if (model_run(m, items, inputs, outputs)) return 2;
  fwrite(y, sizeof *y, writes, stdout);
  free(x);
  free(y);
  model_close(m);
  return 0;
}
