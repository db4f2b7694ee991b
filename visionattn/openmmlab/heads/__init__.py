# SPDX-License-Identifier: Apache-2.0
"""Heads that mmdet and mmsegmentation lack. Nothing here is imported with `visionattn.openmmlab`."""
