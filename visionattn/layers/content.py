# SPDX-License-Identifier: Apache-2.0
"""Attention that is local among features, not in the image."""

from torch import Tensor, nn

from visionattn.kernels import clustered_attention
from visionattn.kernels.pattern import is_symbolic

from .attention import RelativeAttention

# Pixels of a cluster where splits follow the map: from this to twice as many.
CLUSTER = 49


def splits_for(height: int, width: int) -> int:
    """Splits that leave a map's pixels in clusters of at least 49."""
    return max(height * width // CLUSTER, 1).bit_length() - 1


class ContentAttention(RelativeAttention):
    """Pixels attend to those whose queries are like their own, in clusters of equal size that each head makes.

    A depth-wise 3x3 convolution of the values is added. Which pixels share a cluster is a matter of nearly equal
    numbers, so that rounding may move some.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads.
        num_splits: Times that the pixels are split in halves; None for as many as leave clusters of 49 pixels to 97,
            on each map anew, which takes maps of a known size.
        overlap: Keys of the other half of the last split that a cluster sees.
        pair_images: Where there is no split, let each two images that follow each other in a batch see `overlap` keys
            of the other, as the reference does.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not fit, or a number is negative.

    Paper: BOAT: Bilateral Local Attention Vision Transformer, arXiv 2201.13027.
    """

    cost = "O(N log N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_splits: int | None = None,
        overlap: int = 20,
        pair_images: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop)
        if (num_splits or 0) < 0 or overlap < 0:
            raise ValueError(f"num_splits={num_splits} and overlap={overlap} must not be negative")
        self.num_splits, self.overlap, self.pair_images = num_splits, overlap, pair_images
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1.

        Raises:
            ValueError: If the number of splits is to follow the map in a trace of any size, or images to pair are odd
                in number.
        """
        height, width = x.shape[1:3]
        # Merging axes of other strides would tie a trace to a batch of more than one image.
        q, k, v = (t.contiguous() for t in self.project_in(x))
        out = clustered_attention(
            q.flatten(1, 2),
            k.flatten(1, 2),
            v.flatten(1, 2),
            self._splits_on(height, width),
            overlap=self.overlap,
            scale=self.scale,
            pair_images=self.pair_images,
        ).unflatten(1, (height, width))
        local = self.lepe(v.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.project_out(out + local.reshape(v.shape))

    def _splits_on(self, height: int, width: int) -> int:
        if self.num_splits is not None:
            return self.num_splits
        if is_symbolic(height, width):
            raise ValueError("num_splits=None needs maps of one size; give a number to trace maps of any")
        return splits_for(height, width)

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the choice, the two attention products and the convolution, softmax left out."""
        splits, pixels = self._splits_on(height, width), height * width
        size = -(-pixels // 2**splits)
        keys = size + (min(self.overlap, size) if splits or self.pair_images else 0)
        return pixels * self.dim * (10 * splits + 2 * keys + 9)
