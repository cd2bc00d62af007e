"""Find the nearest clips by the cosine similarity of their embeddings.

Axes: N clips to search, Q queries, D embedding size, K neighbours.
"""

import numpy as np

from pipeline.errors import InputError

BLOCK_CLIPS = 2**16
"""Clips per matrix product. Bounds the memory for the cosines."""


def normalise_rows(embeddings_ND: np.ndarray) -> np.ndarray:
    """Scale embeddings to length 1 (float32). Raises InputError for non-finite values."""
    embeddings_ND = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    if not np.isfinite(embeddings_ND).all():
        raise InputError("expected finite embeddings, found NaN or infinity; compute them again")
    return embeddings_ND / np.linalg.norm(embeddings_ND, axis=1, keepdims=True).clip(min=1e-12)


def find_nearest_rows(
    queries_QD: np.ndarray, embeddings_ND: np.ndarray, num_neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each query with every clip; return the cosines and rows (Q, K) of the nearest clips, nearest first."""
    queries_QD, embeddings_ND = normalise_rows(queries_QD), normalise_rows(embeddings_ND)
    num_neighbours = min(num_neighbours, len(embeddings_ND))
    cosines_QK = np.empty((len(queries_QD), 0), np.float32)
    rows_QK = np.empty((len(queries_QD), 0), np.int64)
    for start in range(0, len(embeddings_ND), BLOCK_CLIPS):
        block_QB = queries_QD @ embeddings_ND[start : start + BLOCK_CLIPS].T
        cosines_QK = np.concatenate([cosines_QK, block_QB], axis=1)
        rows = np.broadcast_to(np.arange(start, start + block_QB.shape[1]), block_QB.shape)
        rows_QK = np.concatenate([rows_QK, rows], axis=1)
        if cosines_QK.shape[1] > num_neighbours:
            best_QK = np.argpartition(-cosines_QK, num_neighbours - 1, axis=1)[:, :num_neighbours]
            cosines_QK = np.take_along_axis(cosines_QK, best_QK, axis=1)
            rows_QK = np.take_along_axis(rows_QK, best_QK, axis=1)
    order_QK = np.lexsort((rows_QK, -cosines_QK), axis=1)
    return np.take_along_axis(cosines_QK, order_QK, axis=1), np.take_along_axis(rows_QK, order_QK, axis=1)
