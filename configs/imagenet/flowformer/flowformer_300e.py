# SPDX-License-Identifier: Apache-2.0
"""va_flowformer trained for 300 epochs on ImageNet-1K, 224x224.

    visionattn train imagenet/flowformer/flowformer_300e --data DIR

The recipe of Flowformer (arXiv:2202.06258): DeiT's with clipped gradients and without erasing, 768 images a step.
Published: top-1 80.6.
"""

_base_ = "../_base_/deit.py"

model = dict(name="va_flowformer")
train_dataloader = dict(batch_size=96, dataset=dict(pipeline=dict(erase_prob=0.0)))
optim_wrapper = dict(optimizer=dict(lr=7.5e-4), clip_grad=dict(max_norm=1.0))
auto_scale_lr = dict(base_batch_size=768)
