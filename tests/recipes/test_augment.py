from __future__ import annotations

import pytest
import torch

from recipes.augment import Batches, crop_windows, random_crop, random_cutout, random_flip
from recipes.config import AugmentConfig
from recipes.data import ImageInfo, Split

INFO = ImageInfo(
    channels=2, height=4, width=3, num_classes=2, class_names=("a", "b"), mean=(0.25, 0.5), std=(0.5, 0.25)
)
EVERYTHING = AugmentConfig(crop=2, flip=0.5, cutout=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def split(num_images: int = 6) -> Split:
    """Images whose pixels all differ and are not zero."""
    images = torch.arange(1, num_images * 24 + 1).remainder(251).add(1).to(torch.uint8).view(num_images, 2, 4, 3)
    return Split(images=images, labels=torch.arange(num_images) % 2)


def batches(augment: AugmentConfig | None = None, seed: int = 0) -> Batches:
    return Batches(split(), INFO, memory_format=torch.channels_last, augment=augment, generator=seeded(seed))


def test_crop_is_a_window_of_the_padded_image_and_every_window_comes_up():
    image = split(1).images
    padded = torch.zeros(2, 8, 7, dtype=torch.uint8)
    padded[:, 2:6, 2:5] = image[0]
    windows = {padded[:, y : y + 4, x : x + 3].numpy().tobytes(): (y, x) for y in range(5) for x in range(5)}
    assert len(windows) == 25
    rows = torch.zeros(500, dtype=torch.long)
    crops = random_crop(crop_windows(image, 2), rows, seeded())
    seen = {windows[crop.numpy().tobytes()] for crop in crops.contiguous()}
    assert len(seen) == 25


def test_crop_takes_the_rows_asked_for():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 9, 9)
    crops = random_crop(crop_windows(images, 1), torch.tensor([3, 0, 3]), seeded())
    assert crops[:, 0, 4, 4].tolist() == [3, 0, 3]


def test_flip_mirrors_left_to_right_with_a_draw_an_image():
    images = split(1).images.expand(200, -1, -1, -1)
    flipped = random_flip(images, 0.5, seeded())
    mirrored = (flipped == images.flip(3)).all((1, 2, 3))
    assert (mirrored | (flipped == images).all((1, 2, 3))).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize(("probability", "mirrored"), [(0.0, False), (1.0, True)])
def test_flip_of_none_and_of_all(probability, mirrored):
    images = split().images
    assert torch.equal(random_flip(images, probability, seeded()), images.flip(3) if mirrored else images)


def test_cutout_blanks_one_square_an_image_with_its_centre_anywhere():
    blank = random_cutout(torch.ones(400, 2, 7, 7), 3, seeded()) == 0
    assert torch.equal(blank[:, 0], blank[:, 1])
    rows, columns = blank[:, 0].any(2), blank[:, 0].any(1)
    assert torch.equal(blank[:, 0], rows[:, :, None] & columns[:, None, :])
    assert {(row.sum().item(), column.sum().item()) for row, column in zip(rows, columns, strict=True)} == {
        (height, width) for height in (2, 3) for width in (2, 3)
    }
    whole = (rows.sum(1) == 3) & (columns.sum(1) == 3)
    corners = {
        (row.tolist().index(True), column.tolist().index(True)) for row, column in zip(rows, columns, strict=True)
    }
    assert whole.any()
    assert len(corners) == 36


def test_same_generator_gives_the_same_batches_and_another_does_not():
    rows = torch.arange(6)
    first, again, other = (batches(EVERYTHING, seed) for seed in (0, 0, 1))
    one = first(rows)[0]
    assert torch.equal(one, again(rows)[0])
    assert not torch.equal(one, other(rows)[0])
    assert not torch.equal(one, first(rows)[0]), "the second epoch repeats the first"


def test_batch_without_augmentation_is_normalised_and_draws_nothing():
    generator = seeded()
    made = Batches(split(), INFO, memory_format=torch.channels_last, augment=AugmentConfig(), generator=generator)
    images, labels = made(torch.tensor([5, 2]))
    expected = (split().images[[5, 2]] / 255 - torch.tensor([0.25, 0.5]).view(2, 1, 1)) / torch.tensor(
        [0.5, 0.25]
    ).view(2, 1, 1)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    assert labels.tolist() == [1, 0]
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_augmentation_leaves_the_stored_images_alone():
    kept = split()
    made = Batches(kept, INFO, memory_format=torch.contiguous_format, augment=EVERYTHING, generator=seeded())
    made(torch.arange(6))
    assert torch.equal(kept.images, split().images)


def test_features_pass_untouched():
    values = torch.randn(4, 10, generator=seeded())
    made = Batches(
        Split(images=values, labels=torch.arange(4)), INFO, memory_format=torch.channels_last, generator=seeded()
    )
    images, labels = made(torch.tensor([3, 1]))
    assert torch.equal(images, values[[3, 1]])
    assert labels.tolist() == [3, 1]
