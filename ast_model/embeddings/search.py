"""Nearest clips by the cosine of their embeddings: exact with NumPy, approximate with Faiss for many clips.

Axes: N clips of the index, Q queries, D embedding size, K neighbours.
"""

import logging

import numpy as np

from pipeline.errors import ConfigError, InputError

log = logging.getLogger(__name__)

MIN_APPROXIMATE = 200_000
"""Number of clips from which an approximate index pays off."""
BLOCK_CLIPS = 2**16
NUM_PROBES_PER_LIST = 1 / 64
"""Share of an approximate index's lists that a query searches."""
TRAINING_CLIPS_PER_LIST = 40


def normalise_rows(embeddings_ND: np.ndarray) -> np.ndarray:
    """Scale embeddings to length 1 (float32). Raises InputError for non-finite values."""
    embeddings_ND = np.ascontiguousarray(embeddings_ND, dtype=np.float32)
    if not np.isfinite(embeddings_ND).all():
        raise InputError("expected finite embeddings, found NaN or infinity; compute them again")
    return embeddings_ND / np.linalg.norm(embeddings_ND, axis=1, keepdims=True).clip(min=1e-12)


class ExactIndex:
    """Compares each query with every clip."""

    def __init__(self, embeddings_ND: np.ndarray):
        self.embeddings_ND = normalise_rows(embeddings_ND)

    def search(self, queries_QD: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines and the rows (Q, K) of the nearest clips, nearest first."""
        queries_QD = normalise_rows(queries_QD)
        num_neighbours = min(num_neighbours, len(self.embeddings_ND))
        cosines_QK = np.empty((len(queries_QD), 0), np.float32)
        rows_QK = np.empty((len(queries_QD), 0), np.int64)
        for start in range(0, len(self.embeddings_ND), BLOCK_CLIPS):  # limits the memory of the products
            block_QB = queries_QD @ self.embeddings_ND[start : start + BLOCK_CLIPS].T
            cosines_QK = np.concatenate([cosines_QK, block_QB], axis=1)
            rows = np.broadcast_to(np.arange(start, start + block_QB.shape[1]), block_QB.shape)
            rows_QK = np.concatenate([rows_QK, rows], axis=1)
            if cosines_QK.shape[1] > num_neighbours:
                best_QK = np.argpartition(-cosines_QK, num_neighbours - 1, axis=1)[:, :num_neighbours]
                cosines_QK = np.take_along_axis(cosines_QK, best_QK, axis=1)
                rows_QK = np.take_along_axis(rows_QK, best_QK, axis=1)
        order_QK = np.lexsort((rows_QK, -cosines_QK), axis=1)
        return np.take_along_axis(cosines_QK, order_QK, axis=1), np.take_along_axis(rows_QK, order_QK, axis=1)


class ApproximateIndex:
    """Clusters the clips and searches only the nearest clusters (Faiss's IVF with inner product)."""

    def __init__(self, embeddings_ND: np.ndarray, seed: int = 0):
        try:
            import faiss
        except ImportError as error:
            raise ConfigError(f"an approximate search needs Faiss ({error}): pip install '.[search]'") from error
        embeddings_ND = normalise_rows(embeddings_ND)
        num_clips, num_dimensions = embeddings_ND.shape
        # √N lists of √N clips each are the cheapest to search. N limits them, so that each list has enough training
        # data.
        num_lists = max(1, min(round(4 * num_clips**0.5), num_clips // TRAINING_CLIPS_PER_LIST))
        quantizer = faiss.IndexFlatIP(num_dimensions)
        self.index = faiss.IndexIVFFlat(quantizer, num_dimensions, num_lists, faiss.METRIC_INNER_PRODUCT)
        self.index.cp.seed = seed
        num_training = min(num_clips, TRAINING_CLIPS_PER_LIST * num_lists)
        chosen = np.random.default_rng(seed).choice(num_clips, num_training, replace=False)
        self.index.train(embeddings_ND[chosen])
        self.index.add(embeddings_ND)
        self.index.nprobe = max(1, round(num_lists * NUM_PROBES_PER_LIST))

    def search(self, queries_QD: np.ndarray, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosines and the rows (Q, K) of near clips, nearest first; −1 for missing results."""
        return self.index.search(normalise_rows(queries_QD), min(num_neighbours, self.index.ntotal))


def build_index(embeddings_ND: np.ndarray) -> ExactIndex | ApproximateIndex:
    """Return an index suitable for the number of clips."""
    if len(embeddings_ND) < MIN_APPROXIMATE:
        return ExactIndex(embeddings_ND)
    log.info("building an approximate index of %d embeddings", len(embeddings_ND))
    return ApproximateIndex(embeddings_ND)
