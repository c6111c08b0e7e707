"""Kernels: pure functions over arrays, compiled by Numba; nothing else imports Numba."""
