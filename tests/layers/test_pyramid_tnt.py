# SPDX-License-Identifier: Apache-2.0
"""Words and sentences: what each part does with the other stream, cell by cell, and on maps of any size."""

import pytest
import timm
import torch
import torch.nn.functional as F

import visionattn
from visionattn.layers import (
    AveragedAttention,
    ConvDownsample,
    PairBias,
    WordMerging,
    WordPath,
    WordPositions,
    WordStem,
    resize_pairs,
)
from visionattn.models import FAMILIES, convert


def drawn(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer.double().eval()


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def streams(batch, height, width, dim=6, word_dim=4):
    return normal(batch, height, width, dim), normal(batch * height * width, 16, word_dim)


@pytest.mark.parametrize(("size", "reduction"), [((5, 7), 2), ((2, 3), 4), ((3, 2), 1)], ids=str)
def test_pixels_attend_to_averages_with_a_bias_for_each_pair(size, reduction):
    layer, x = drawn(AveragedAttention(12, 3, reduction)), normal(2, *size, 12)
    rows, columns = (max(n // reduction, 1) for n in size)
    bias = normal(3, *size, rows, columns)
    padded = F.pad(x, (0, 0, 0, max(reduction - size[1], 0), 0, max(reduction - size[0], 0)))
    cells = [
        padded[:, i * reduction : (i + 1) * reduction, j * reduction : (j + 1) * reduction].mean((1, 2))
        for i in range(rows) for j in range(columns)]  # fmt: skip
    keys = torch.stack(cells, 1)
    keys = layer.norm(layer.sr(keys)) if reduction > 1 else keys
    query = (size[0] - 1, 1)
    k, v = layer.kv(keys).unflatten(2, (2, 3, 4)).unbind(2)
    for given in (bias, None):
        heads = []
        for h in range(3):
            logits = k[:, :, h] @ layer.q(x[:, query[0], query[1]]).unflatten(1, (3, 4))[0, h] * 4**-0.5
            logits = logits[0] + (0 if given is None else bias[h][query].flatten())
            heads.append(logits.softmax(0) @ v[0, :, h])
        assert torch.allclose(layer(x, given)[0][query], layer.proj(torch.cat(heads)))


def test_words_attend_inside_their_sentence_and_are_told_to_it():
    layer = drawn(WordPath(4, 6, 2, 2.0, qkv_bias=True))
    sentences, words = streams(2, 2, 3)
    new_sentences, new_words = layer(sentences, words)
    one = words[7]  # the second image's second cell
    joined = layer.norm1(one.flatten()).view(16, 4)
    q, (k, v) = layer.attn.q(joined), layer.attn.kv(joined).chunk(2, -1)
    heads = [(q[:, h] @ k[:, h].T * 2**-0.5).softmax(-1) @ v[:, h] for h in (slice(0, 2), slice(2, 4))]
    one = one + layer.attn.proj(torch.cat(heads, 1))
    one = one + layer.mlp(layer.norm2(one.flatten()).view(16, 4))
    assert torch.allclose(new_words[7], one)
    told = layer.proj_norm2(layer.proj(layer.proj_norm1(one.flatten())))
    assert torch.allclose(new_sentences[1, 0, 1], sentences[1, 0, 1] + told)


@pytest.mark.parametrize("size", [(2, 4), (3, 1)], ids=str)
def test_four_sentences_words_are_merged_side_by_side(size):
    layer = drawn(WordMerging(ConvDownsample(6, 8, bias=True, norm_first=True), 4, 5))
    sentences, words = streams(2, *size)
    merged, new = layer((sentences, words))
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    assert merged.shape == (2, rows, columns, 8) and new.shape == (2 * rows * columns, 16, 5)
    normed = layer.norm(words).view(2, *size, 4, 4, 4)
    image, row, column = 1, rows - 1, columns - 1
    plane = torch.zeros(4, 8, 8, dtype=torch.float64)
    for i in range(2):
        for j in range(2):
            if 2 * row + i < size[0] and 2 * column + j < size[1]:
                cell = normed[image, 2 * row + i, 2 * column + j].permute(2, 0, 1)
                plane[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = cell
    expected = layer.words(plane[None])[0].flatten(1).T
    assert torch.allclose(new[(image * rows + row) * columns + column], expected)


def test_the_stem_gives_each_cell_the_words_above_it():
    stem, x = drawn(WordStem(3, 6, 4)), normal(2, 3, 19, 30)
    sentences, words = stem(x)
    assert sentences.shape == (2, 3, 4, 6) and words.shape == (2 * 3 * 4, 16, 4)
    fine = stem.words(stem.common(F.pad(x, (0, 2, 0, 5))))
    cell = fine[1, :, 8:12, 4:8].flatten(1).T
    assert torch.allclose(words[(1 * 3 + 2) * 4 + 1], cell)
    positions = drawn(WordPositions(6, 4, (3, 4)))
    both = positions((sentences, words))
    assert torch.allclose(both[0][0, 2, 3], sentences[0, 2, 3] + positions.table[:, 2, 3])
    assert torch.allclose(both[1][5], words[5] + positions.words)


def test_biases_are_resized_along_queries_and_keys():
    bias = drawn(PairBias(2, (4, 6), 2))
    assert bias((4, 6)) is bias.table and bias.table.shape == (2, 4, 6, 2, 3)
    rows, columns = normal(2, 4, 6), normal(2, 2, 3)
    products = torch.einsum("hab,hcd->habcd", rows, columns)  # of products each factor is resized by itself
    resized = [F.interpolate(t[None], size=s, mode="bicubic")[0] for t, s in ((rows, (5, 9)), (columns, (2, 4)))]
    found = resize_pairs(products, (5, 9), (2, 4))
    assert torch.allclose(found, torch.einsum("hab,hcd->habcd", *resized))
    assert bias((5, 9)).shape == (2, 5, 9, 2, 4) and bias((1, 1)).shape == (2, 1, 1, 1, 1)


def test_files_made_for_another_size_load():
    family = FAMILIES["pyramid_tnt"]
    small, large = (timm.create_model("va_pyramid_tnt_tiny", **{**family.micros["va_pyramid_tnt_tiny"], "img_size": s})
                    for s in (64, (96, 72)))  # fmt: skip
    assert large.pos_embed.table.shape[1:] == (12, 9) and large.stages[1].position.table.shape == (2, 6, 5, 6, 5)
    large.load_state_dict(convert(small.state_dict(), large))
    expected = resize_pairs(small.stages[0].position.table, (12, 9), (6, 4))
    assert torch.equal(large.stages[0].position.table, expected)
    assert torch.isfinite(large(torch.randn(1, 3, 96, 72))).all()


def test_long_stages_have_two_blocks_with_words():
    info = visionattn.info("va_pyramid_tnt_base")
    with torch.device("meta"):
        model = timm.create_model(info.name)
    with_words = [[hasattr(block, "words") for block in stage.blocks] for stage in model.stages]
    assert [sum(stage) for stage in with_words] == [1, 2, 1, 1] and all(stage[0] for stage in with_words)


def test_bad_arguments_are_named():
    for kwargs, message in (
        ({"word_dims": (4, 4)}, r"word_dims=\(4, 4\) must have one entry for each of the 4 stages"),
        ({"reductions": (4,)}, r"reductions=\(4,\) must have one entry"),
        ({"img_size": 0}, "img_size=0 must be positive"),
        ({"word_heads": (2, 2, 4, 4)}, "num_heads=2 must be a positive divisor of dim=5"),
    ):
        with pytest.raises(ValueError, match=message):
            timm.create_model("va_pyramid_tnt_tiny", **kwargs)
