# SPDX-License-Identifier: Apache-2.0
"""va_agent_cswin_base_384 fine-tuned for 30 epochs on ImageNet-1K, 384x384.

    visionattn train imagenet/agent/agent-cswin-base-384_ft-30e --data DIR

It starts from the weights of agent-cswin-base_310e; model.kwargs.pretrained_cfg_overlay.file names another file.
Published: top-1 85.8.
"""

_base_ = "./_cswin.py"

model = dict(
    name="va_agent_cswin_base_384",
    pretrained=True,
    kwargs=dict(pretrained_cfg_overlay=dict(file="work_dirs/agent-cswin-base_310e/best.pth")),
)
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=dict(size=384)))
val_dataloader = dict(dataset=dict(pipeline=dict(size=384, crop_mode="squash")))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=5e-06, weight_decay=1e-08))
auto_scale_lr = dict(base_batch_size=256)
param_scheduler = dict(warmup_epochs=0, min_factor=0.1)
default_hooks = dict(ema=dict(type="EMAHook", momentum=0.0002))
