"""Crop arithmetic: always inside the image, never smaller than it must be, and fixed for ever."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardstream.decode import images
from shardstream.decode.crops import RANDOM, centre, cut, random_crops
from shardstream.order.uniforms import uniforms

sides = st.integers(1, 5000)
targets = st.integers(1, 512)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=8), st.integers(0, 2**64 - 1), targets)
def test_random_crops_lie_in_the_image(shapes, seed, target):
    sizes = np.array(shapes, np.int64)
    crops, last = random_crops(
        sizes, uniforms(np.arange(len(sizes)), RANDOM, seed, 3), (0.08, 1.0), (3 / 4, 4 / 3)
    )
    assert ((crops[:, :2] >= 0) & (crops[:, 2:] >= 1)).all()
    assert (crops[:, :2] + crops[:, 2:] <= sizes).all()
    assert ((last >= 0) & (last < 1)).all()
    for (height, width), crop in zip(shapes, crops.tolist(), strict=True):
        how = cut((height, width), tuple(crop), (target, target))
        # The part that is decoded covers the crop, and ends with the smaller image.
        assert how.top * how.scale <= crop[0]
        assert how.bottom * how.scale >= crop[0] + crop[2]
        assert how.left * how.scale <= crop[1]
        assert how.right * how.scale >= crop[1] + crop[3]
        assert how.bottom <= -(-height // how.scale)
        assert how.right <= -(-width // how.scale)
        if how.scale > 1:
            assert min(crop[2], crop[3]) >= how.scale * target


@given(sides, sides, targets)
def test_centre_keeps_the_shape(height, width, shorter):
    how = centre((height, width), shorter)
    assert min(how.height, how.width) == shorter
    assert (how.top, how.left) == (0, 0)
    assert (how.bottom, how.right) == (-(-height // how.scale), -(-width // how.scale))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(-(2**63), 2**64 - 1))
def test_random_numbers_depend_on_their_position_alone(epoch, position, seed):
    train = images.Train(seed=seed)
    alone = train.random(epoch, np.array([position]))
    among = train.random(epoch, np.array([position + 1, position]))
    assert np.array_equal(alone[0], among[1])
    assert not np.array_equal(alone[0], among[0])


def test_an_image_without_a_crop_of_the_ratio_is_cut_in_the_middle():
    sizes = np.array([[200, 8], [7, 1000], [1, 50]], np.int64)
    crops, _ = random_crops(sizes, uniforms(np.arange(3), RANDOM, 0, 0), (0.5, 1.0), (3 / 4, 4 / 3))
    assert crops.tolist() == [[94, 0, 11, 8], [0, 495, 7, 9], [0, 24, 1, 1]]


def test_crops_are_spread_as_torchvision_spreads_them():
    count = 20_000
    sizes = np.full((count, 2), 1000, np.int64)
    crops, flips = random_crops(sizes, uniforms(np.arange(count), RANDOM, 0, 0), (0.08, 1.0), (3 / 4, 4 / 3))
    area = crops[:, 2] * crops[:, 3] / 1e6
    # Crops of most of the image fit only where they are nearly square: a bit less than the mean of 0.54.
    assert 0.48 < area.mean() < 0.54
    assert area.min() < 0.09
    assert 0.49 < (flips < 0.5).mean() < 0.51
    assert abs(np.log(crops[:, 3] / crops[:, 2]).mean()) < 0.01


def test_crops_are_pinned():
    """A run that resumes with another version sees the same crops; `test_dali` compares DALI's with them."""
    sizes = np.array([[480, 640], [1200, 900], [33, 2000], [500, 375], [64, 64], [3000, 4000]], np.int64)
    positions = np.array([0, 1, 10**12, 2, 3, 4])
    train = images.Train(seed=7)
    crops, flips = random_crops(sizes, train.random(2, positions), train.area, train.ratio)
    assert crops.tolist() == PINNED
    assert (flips < 0.5).tolist() == FLIPPED
    cuts, mirrored = train.cuts(sizes, train.random(2, positions))
    assert mirrored == FLIPPED
    assert [how.scale for how in cuts] == SCALES


PINNED = [
    [2, 81, 179, 197],
    [543, 107, 528, 551],
    [0, 978, 33, 44],
    [62, 47, 393, 315],
    [20, 7, 42, 40],
    [103, 674, 2815, 3068],
]
FLIPPED = [True, True, False, True, False, False]
SCALES = [1, 2, 1, 1, 1, 8]
