# SPDX-License-Identifier: Apache-2.0
"""What every detection and segmentation run shares: hooks, TensorBoard, seed.

A config takes it as one of its bases, in the place of mmdet's and mmsegmentation's `default_runtime.py`. Configs that
lack it get it from `visionattn train` all the same.
"""

custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)

# `last.pth` after every validation and `best.pth`; the figures go to metrics.jsonl, curves.png and TensorBoard.
default_hooks = dict(logger=None, checkpoint=dict(type="AtomicCheckpointHook"))
custom_hooks = [dict(type="EpochSeedHook"), dict(type="MetricsHook", interval=10), dict(type="ProgressHook")]
vis_backends = [dict(type="TensorboardVisBackend")]
visualizer = dict(type="Visualizer", vis_backends=vis_backends)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),  # gloo where there is no GPU
)
find_unused_parameters = False  # True where not every parameter gets a gradient, with several processes
randomness = dict(seed=0)
log_level = "INFO"
load_from = None
resume = False
