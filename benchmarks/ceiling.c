/* What a hand-written kernel reaches on this machine, on one core: the bar for the generated ones.
 *
 *     Y[m, n] = sum over the entries i of row m of  value[i] * X[offset[i] + n]
 *
 * `rows` consecutive rows of Y share one list of offsets (1: unstructured, 4: 4x1 blocks; dense: the
 * list of every offset). An entry of the weight stream is `rows` values and then one int32 offset, in
 * the order of execution: pass by pass, block of rows by block of rows. A pass covers so few rows of X
 * that the part one tile touches stays in the first-level cache; between passes Y holds the sums.
 *
 * Vectors are those of the GNU C extension, as wide as -march=native allows, so the same source serves
 * AVX-512, AVX2 and NEON.
 */
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
  const float *stream;
  const int32_t *counts; /* entries of each block of rows in each pass: passes x blocks */
  const float *x;
  float *y;
  int64_t y_stride; /* floats from one row of Y to the next */
  int32_t blocks;   /* rows of Y / rows of a block */
  int32_t passes;
  int32_t columns; /* of Y; X and Y have room for a whole last tile */
} Problem;

enum { MOST_ROWS = 8, MOST_VECTORS = 16 };

/* `rows` and `vectors` are constants where this is inlined, so the sums live in registers. */
static inline __attribute__((always_inline)) const float *block(const Problem *p, const float *entry,
                                                                int count, const float *x, float *y,
                                                                int first, const int rows,
                                                                const int vectors) {
  Vector sum[MOST_ROWS][MOST_VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++)
      sum[r][v] = first ? (Vector){0} : (Vector)*(const Loose *)(y + r * p->y_stride + v * LANES);
  for (; count > 0; count--, entry += rows + 1) {
    int32_t offset;
    memcpy(&offset, entry + rows, sizeof offset);
    const float *line = x + offset;
    __asm__("" : "+r"(line)); /* else gcc computes the address of every vector apart: an add per load */
    Vector taken[MOST_VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) taken[v] = *(const Loose *)(line + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
      for (int v = 0; v < vectors; v++) sum[r][v] += entry[r] * taken[v];
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
    for (int v = 0; v < vectors; v++) *(Loose *)(y + r * p->y_stride + v * LANES) = sum[r][v];
  return entry;
}

#define KERNEL(R, V)                                                                                  \
  static void gathered_rows_##R##_##V(const Problem *p) {                                             \
    for (int n = 0; n < p->columns; n += V * LANES) {                                                 \
      const float *entry = p->stream;                                                                 \
      const int32_t *count = p->counts;                                                               \
      for (int pass = 0; pass < p->passes; pass++)                                                    \
        for (int b = 0; b < p->blocks; b++)                                                           \
          entry = block(p, entry, *count++, p->x + n, p->y + b * R * p->y_stride + n, pass == 0, R, V); \
    }                                                                                                 \
  }

/* One line per variant: as many sums as the registers hold (32 with AVX-512 and NEON, 16 with AVX2). */
#define VARIANTS(X) \
  X(1, 2) X(1, 4) X(1, 7) X(1, 8) X(1, 10) X(1, 13) X(1, 14) X(1, 16) \
  X(2, 4) X(2, 7) X(2, 8) X(4, 2) X(4, 3) X(4, 4) X(4, 5) X(4, 6) X(4, 7) X(8, 1) X(8, 2) X(8, 3)

VARIANTS(KERNEL)

#define ROW(R, V) {R, V, gathered_rows_##R##_##V},
static const struct {
  int rows, vectors;
  void (*run)(const Problem *);
} VARIANT[] = {VARIANTS(ROW)};

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int lanes(void) { return LANES; }

int variant_count(void) { return sizeof VARIANT / sizeof *VARIANT; }

void variant(int index, int *rows, int *vectors) {
  *rows = VARIANT[index].rows;
  *vectors = VARIANT[index].vectors;
}

/* Seconds of one call, the mean of `repeats`. */
double run(int index, const Problem *problem, int repeats) {
  double start = now();
  for (int i = 0; i < repeats; i++) VARIANT[index].run(problem);
  return (now() - start) / repeats;
}

/* The best fp32 multiply-add rate of one core, GFLOP/s: 12 independent chains, nothing from memory. */
double fma_peak(void) {
  enum { CHAINS = 12, STEPS = 100000, TRIES = 500 }; /* short tries: some fit between interruptions */
  double best = 0;
  volatile float kept = 0;
  for (int try = 0; try < TRIES; try++) {
    Vector sum[CHAINS];
    for (int c = 0; c < CHAINS; c++) sum[c] = (Vector){0} + (float)c; /* equal chains would be merged */
    double start = now();
    for (int i = 0; i < STEPS; i++)
#pragma GCC unroll 16
      for (int c = 0; c < CHAINS; c++) sum[c] = sum[c] * 0.5f + 0.999f;
    double rate = 2.0 * LANES * CHAINS * STEPS / (now() - start) / 1e9;
    for (int c = 0; c < CHAINS; c++) kept += sum[c][0];
    if (rate > best) best = rate;
  }
  return best;
}
