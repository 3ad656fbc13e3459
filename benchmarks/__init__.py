"""Measurements of sparsecomp beside its rivals; `README.md` says how to run and extend them."""
