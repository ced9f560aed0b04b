"""Every default limit of the platform, unit last. Contracts and messages quote these."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

INFER_TEXTS_MAX = 10_000
FANOUT_VPLMS_MAX = 1_000
TEXT_CHARS_MAX = 100_000
MESSAGE_BYTES_MAX = 4 * MIB
PROCESSOR_MESSAGE_BYTES_MAX = 16 * MIB
CALL_BYTES_MAX = 256 * MIB
CHUNK_BYTES_MAX = 1 * MIB
MODULE_BYTES_MAX = 64 * MIB
FULL_BYTES_MAX = 512 * MIB  # a version that holds every weight: no module, and never served
CHECKPOINT_BYTES_MAX = 2 * GIB  # weights in float32, their optimizer's state, their best epoch
DATASET_BYTES_MAX = 1 * GIB
TENANT_BYTES_MAX = 1 * GIB
TENANT_VPLMS_MAX = 10_000
TENANT_DATASETS_MAX = 1_000
TENANT_API_KEYS_MAX = 100
TENANT_JOBS_QUEUED_MAX = 100
TENANT_FULL_JOBS_MAX = 1
FULL_TRAINING_BYTES_MAX = 4 * GIB  # of a worker's memory
PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
