# SPDX-License-Identifier: Apache-2.0
"""Agent attention: pooled queries gather the values of all pixels and hand them out again."""

import math

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import agent_attention

from .attention import resize_line, resize_table
from .init import init_table
from .linear_mixer import LinearMixer, depthwise, join_class, packed, split_class
from .padding import crop_to_size, pad_to_multiple
from .pooling import average_cells

# Side of the tables whose every entry is a place in the map, whatever the size of the map.
COARSE = 7


class AgentPositions(nn.Module):
    """Biases of agents and pixels: a coarse table, resized to the map, and a term for each row and each column.

    The terms are made for one size and resized linearly on others; for another grid of agents than the tables were made
    for, the agents' axis is resized as a map.

    Args:
        num_heads: Attention heads.
        side: Rows and columns of agents that the tables are made for.
        map_size: `(height, width)` of the queries' map.
        key_size: `(height, width)` of the keys' map.
        grid: Rows and columns of agents.
        class_token: Whether a class token leads the tokens.
    """

    def __init__(
        self,
        num_heads: int,
        side: int,
        map_size: tuple[int, int],
        key_size: tuple[int, int],
        grid: tuple[int, int],
        class_token: bool,
    ) -> None:
        super().__init__()
        self.side, self.grid, self.class_token = side, grid, class_token

        def table(*size: int) -> nn.Parameter:
            parameter = nn.Parameter(torch.empty(num_heads, side**2, *size))
            init_table(parameter)
            return parameter

        self.key_table, self.query_table = table(COARSE, COARSE), table(COARSE, COARSE)
        self.key_rows, self.key_columns = table(key_size[0]), table(key_size[1])
        self.query_rows, self.query_columns = table(map_size[0]), table(map_size[1])
        if class_token:
            self.key_class, self.query_class = table(1), table(1)

    def forward(self, size: tuple[int, int], key_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Biases `(heads, agents, keys)` of the agents' logits and `(heads, queries, agents)` of the queries'."""
        keys = self._bias(self.key_table, self.key_rows, self.key_columns, key_size)
        queries = self._bias(self.query_table, self.query_rows, self.query_columns, size)
        if self.class_token:
            keys = torch.cat([self._agents(self.key_class), keys], 2)
            queries = torch.cat([self._agents(self.query_class), queries], 2)
        return keys, queries.transpose(1, 2)

    def _bias(self, table: Tensor, rows: Tensor, columns: Tensor, size: tuple[int, int]) -> Tensor:
        """Bias `(heads, agents, pixels)`."""
        rows, columns = resize_line(self._agents(rows), size[0]), resize_line(self._agents(columns), size[1])
        places = resize_table(self._agents(table.flatten(2)).unflatten(2, (COARSE, COARSE)), size, "bilinear")
        return (places + rows[..., None] + columns[:, :, None]).flatten(2)

    def _agents(self, table: Tensor) -> Tensor:
        """Table `(heads, side ** 2, n)` for the grid of agents there is."""
        if self.grid == (self.side, self.side):
            return table
        planes = table.transpose(1, 2).unflatten(2, (self.side, self.side))
        return resize_table(planes, self.grid, "bilinear").flatten(2).transpose(1, 2)


class AgentAttention(LinearMixer):
    """Agents, which are averages of queries, attend to all pixels; then every pixel attends to the agents.

    Both softmaxes have learned biases by position. A depth-wise 3x3 convolution of the values is added.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        num_agents: Agents that the tables are made for, a square number.
        map_size: Side or `(height, width)` of the map that the tables are made for; other maps are taken too.
        agent_grid: Rows and columns of agents; None for a square of `num_agents`.
        stripe_width: Pixels across the stripes that attention stays in, columns of the map for the first half of the
            heads and rows for the second, each stripe with agents of its own; None for the whole map.
        reduction: As in `LinearMixer`.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        class_token: Whether tokens `(B, 1 + H * W, C)` are mixed, the class token first: it is no part of the agents
            and of the convolution.

    Raises:
        ValueError: If an argument is out of range, or options exclude each other.

    Paper: Agent Attention: On the Integration of Softmax and Linear Attention, arXiv 2312.08874.
    """

    cost = "O(N)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_agents: int = 49,
        map_size: int | tuple[int, int] = 14,
        agent_grid: tuple[int, int] | None = None,
        stripe_width: int | None = None,
        reduction: int | None = None,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        class_token: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, reduction, qkv_bias, qk_scale, proj_drop, class_token)
        side, size = math.isqrt(max(num_agents, 0)), to_2tuple(map_size)
        if side < 1 or side**2 != num_agents:
            raise ValueError(f"num_agents={num_agents} must be a positive square number")
        if min(size) < 1:
            raise ValueError(f"map_size={size} must be positive")
        grid = (side, side) if agent_grid is None else tuple(agent_grid)
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"agent_grid={agent_grid} must be positive numbers of rows and columns")
        self.agent_grid, self.stripe_width = grid, stripe_width
        windows = [size]
        if stripe_width is not None:
            if stripe_width < 1 or num_heads % 2 or reduction is not None or class_token:
                raise ValueError(
                    f"stripe_width={stripe_width} must be at least 1, with an even num_heads={num_heads}, "
                    "no reduction and no class token"
                )
            windows = [(size[0], stripe_width), (stripe_width, size[1])]
        width, heads = dim // len(windows), num_heads // len(windows)
        self.positions = nn.ModuleList(
            AgentPositions(heads, side, window, self.key_size(*window), grid, class_token) for window in windows
        )
        self.lepe = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in windows)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1; with a class token `(B, 1 + H * W, C)` of a map of `size`."""
        if self.class_token:
            return self.project_out(self.attend_tokens(*self.project_in(x), size))
        if self.stripe_width is None:
            return self.project_out(self.attend(0, *self.project_in(x)))
        height, width = x.shape[1:3]
        q, k, v = self.project_in(pad_to_multiple(x, self.stripe_width))
        half = self.num_heads // 2
        columns = self._in_stripes(0, self.stripe_width, *(t[..., :half, :] for t in (q, k, v)))
        rows = self._in_stripes(1, self.stripe_width, *(t[..., half:, :] for t in (q, k, v)))
        return self.project_out(crop_to_size(torch.cat([columns, rows], 3), height, width))

    def attend(self, branch: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention and convolution of projected maps, `(B, H, W, heads, D)`, by the tables of a branch."""
        size, key_size = (q.shape[1], q.shape[2]), (v.shape[1], v.shape[2])
        key_bias, query_bias = self.positions[branch](size, key_size)
        bias = {"key_bias": key_bias, "query_bias": query_bias}
        out = agent_attention(q, k, v, self._agents(q), scale=self.scale, **bias)
        return out + depthwise(v if self.reduction in (None, 1) else _spread(v, size), self.lepe[branch])

    def attend_tokens(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        """`attend` of tokens `(B, 1 + H * W, heads, D)`, the class token first."""
        key_bias, query_bias = self.positions[0](size, size)
        _, queries = split_class(q, size)
        out = agent_attention(
            q, k, v, self._agents(queries), key_bias=key_bias, query_bias=query_bias, scale=self.scale
        )
        _, values = split_class(v, size)
        token, pixels = split_class(out, size)
        return join_class(token, pixels + depthwise(values, self.lepe[0]))

    def _agents(self, q: Tensor) -> Tensor:
        """Averages `(B, agents, heads, D)` of the queries in each cell of the grid."""
        return average_cells(q.flatten(3), self.agent_grid).flatten(1, 2).unflatten(2, q.shape[3:])

    def _in_stripes(self, branch: int, side: int, *maps: Tensor) -> Tensor:
        """`attend` inside each stripe of maps `(B, H, W, heads, D)`: `side` columns in branch 0, rows in branch 1."""
        if branch == 0:
            maps = tuple(t.transpose(1, 2) for t in maps)
        batch, length, width, heads, head_dim = maps[0].shape
        # Copied first: merging axes of other strides would tie a trace to a batch of more than one image.
        cut = (t.contiguous().reshape(batch * (length // side), side, width, heads, head_dim) for t in maps)
        if branch == 0:
            out = self.attend(branch, *packed(*(t.transpose(1, 2) for t in cut))).transpose(1, 2)
        else:
            out = self.attend(branch, *cut)
        out = packed(out)[0].reshape(batch, length, width, heads, head_dim)
        return out.transpose(1, 2) if branch == 0 else out

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the attention products and the convolution on one map, softmax left out."""
        agents = self.agent_grid[0] * self.agent_grid[1]
        side = self.stripe_width or 1
        pixels = -(-height // side) * side * -(-width // side) * side
        rows, columns = self.key_size(height, width)
        keys = pixels if self.reduction is None else rows * columns
        return (2 * agents * (pixels + keys) + 9 * pixels) * self.dim


def _spread(v: Tensor, size: tuple[int, int]) -> Tensor:
    """Map `(B, h, w, heads, D)` resized bilinearly."""
    planes = resize_table(v.flatten(3).permute(0, 3, 1, 2), size, "bilinear")
    return planes.permute(0, 2, 3, 1).unflatten(3, v.shape[3:])
