from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
import torchvision.transforms.v2.functional as reference
from torch.utils._python_dispatch import TorchDispatchMode

from recipes import trivial
from recipes.augment import Batches, crop_windows, random_crop, random_cutout, random_flip
from recipes.colour import check_channels, random_jitter, shift_hue, soften
from recipes.config import AugmentConfig
from recipes.data import ImageInfo, Split
from recipes.geometry import compose, random_resized_crop, random_rotation, resample, rotation_maps
from recipes.mixing import cutmix_weights, partner_weights, symmetric_beta
from recipes.trivial import Draw, Operation

INFO = ImageInfo(
    channels=2, height=4, width=3, num_classes=2, class_names=("a", "b"), mean=(0.25, 0.5), std=(0.5, 0.25)
)
# Normalised to what they were: from 0 to 255.
PIXELS = ImageInfo(
    channels=3, height=12, width=10, num_classes=4, class_names=tuple("abcd"), mean=(0.0,) * 3, std=(1 / 255,) * 3
)
EVERYTHING = AugmentConfig(crop=2, flip=0.5, cutout=2)
FLOATS = {"resized_crop": 0.2, "rotation": 30, "trivial_augment": 1, "noise": 0.1}
FLOATS |= {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5}
ALL = AugmentConfig(crop=2, flip=0.5, vertical_flip=0.5, cutout=3, mixup=0.4, cutmix=1.0, **FLOATS)


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


# The new ones, on colour images from 0 to 255


def photographs(num_images: int = 16, channels: int = 3) -> torch.Tensor:
    """Images with neighbours alike, every channel with a range of its own, as floats of whole numbers."""
    noise = torch.rand(num_images, channels, 18, 15, generator=seeded(3))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, padding=2)
    return (smooth * torch.tensor([255, 180, 120][:channels]).view(-1, 1, 1)).round()


def colour_batches(augment: AugmentConfig, seed: int = 0, num_images: int = 64) -> Batches:
    """Batches of one image, over and over, each with a class of its own in turn."""
    images = torch.randint(256, (1, 3, 12, 10), generator=seeded(9)).to(torch.uint8).expand(num_images, -1, -1, -1)
    kept = Split(images=images, labels=torch.arange(num_images) % 4)
    return Batches(kept, PIXELS, memory_format=torch.channels_last, augment=augment, generator=seeded(seed))


@pytest.mark.parametrize("name", [*FLOATS, "vertical_flip"])
def test_each_image_draws_its_own(name):
    images, _ = colour_batches(AugmentConfig(**{name: ALL.model_dump()[name]}))(torch.arange(64))
    num_different = len({image.numpy().tobytes() for image in images.contiguous()})
    # TrivialAugment leaves some as they are, and of a flip there are two.
    assert num_different >= {"vertical_flip": 2, "trivial_augment": 40}.get(name, 64)


@pytest.mark.parametrize("name", FLOATS)
def test_pixels_stay_in_their_range(name):
    images, _ = colour_batches(AugmentConfig(**{name: AugmentConfig(**FLOATS).model_dump()[name]}))(torch.arange(64))
    assert images.min() >= -1e-3
    assert images.max() <= 255 + 1e-3
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_everything_at_once_draws_the_same_from_the_same_state():
    first, again = colour_batches(ALL), colour_batches(ALL)
    rows = torch.arange(64)
    for one, other in zip(first(rows), again(rows), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first(rows)[0], colour_batches(ALL, seed=1)(rows)[0])


def test_everything_at_once_never_waits_for_the_device_and_resamples_once():
    called: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.name().removeprefix("aten::"))
            return func(*args, **(kwargs or {}))

    made, rows = colour_batches(ALL), torch.arange(64)
    with Watching():
        images, targets = made(rows)
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh")
    assert [name for name in called if name.startswith(waits)] == []
    assert [name for name in called if "grid_sampler" in name] == ["grid_sampler_2d"]
    assert images.shape == (64, 3, 12, 10)
    assert targets.shape == (64, 4)


def test_vertical_flip_mirrors_top_to_bottom():
    flipped, plain = (
        batches(config)(torch.arange(6))[0] for config in (AugmentConfig(vertical_flip=1), AugmentConfig())
    )
    assert torch.equal(flipped, plain.flip(2))


# Geometry


def test_rotation_by_a_right_angle_is_rot90():
    images = photographs()[..., :15, :]
    turned = resample(images, rotation_maps(torch.full((16,), 90.0)))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=1e-2, rtol=0)


def test_rotation_turns_by_no_more_degrees_than_asked_and_both_ways():
    maps = random_rotation(photographs(500), 20, seeded())
    degrees = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    assert -20 <= degrees.min() < -18
    assert 18 < degrees.max() <= 20


def test_what_a_rotation_shows_from_outside_is_black():
    corner = resample(torch.full((1, 1, 9, 9), 255.0), rotation_maps(torch.tensor([45.0])))[0, 0, 0, 0]
    assert corner == 0


def test_resized_crop_of_everything_is_the_image():
    images = photographs()
    same = resample(images, random_resized_crop(images, 1.0, seeded()))
    torch.testing.assert_close(same, images, atol=1e-2, rtol=0)


def test_resized_crop_shows_parts_of_the_share_and_ratio_and_nothing_outside():
    maps = random_resized_crop(photographs(2000), 0.25, seeded())
    across, down = maps[:, 0, 0], maps[:, 1, 1]
    share, ratio = across * down, across / down
    assert 0.25 <= share.min() < 0.26
    assert 0.99 < share.max() <= 1
    assert 0.75 - 1e-5 <= ratio.min() < 0.76
    assert 1.32 < ratio.max() <= 4 / 3 + 1e-5
    for scale, middle, size in ((across, maps[:, 0, 2], 15), (down, maps[:, 1, 2], 18)):
        reach = middle.abs() + scale * size / 2
        assert (reach <= size / 2 + 1e-4).all()
        assert (reach > 0.99 * size / 2).any()
    white = torch.full((2000, 1, 18, 15), 255.0)
    torch.testing.assert_close(resample(white, maps), white)


def test_resized_crop_of_a_quarter_is_the_quarter_enlarged():
    image = photographs(1)
    # The upper left quarter of 18 by 15: half as wide and high, its centre a quarter to the left and above.
    maps = torch.tensor([[[0.5, 0, -15 / 4], [0, 0.5, -18 / 4], [0, 0, 1.0]]])
    quarter = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")[:, :, :18, :15]
    torch.testing.assert_close(resample(image, maps), quarter, atol=1e-2, rtol=0)


def test_maps_are_composed_in_the_order_of_the_operations():
    image = photographs(1)[..., :15, :]
    half, turn = torch.diag_embed(torch.tensor([[0.5, 1.0, 1.0]])), rotation_maps(torch.tensor([90.0]))
    wide_then_turned = resample(image, compose(half, turn))
    torch.testing.assert_close(wide_then_turned, torch.rot90(resample(image, half), 1, (2, 3)), atol=1e-2, rtol=0)


# Colours


def test_brightness_scales_the_mean_and_contrast_keeps_it():
    images = (photographs(300) * 0.5).contiguous()
    brighter = random_jitter(images, AugmentConfig(brightness=0.4), seeded())
    factors = brighter.mean((1, 2, 3)) / images.mean((1, 2, 3))
    assert 0.6 <= factors.min() < 0.62
    assert 1.38 < factors.max() <= 1.4
    grey = photographs(300, channels=1) * 0.5 + 64
    contrasted = random_jitter(grey, AugmentConfig(contrast=0.4), seeded())
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), grey.mean((1, 2, 3)))
    spread = contrasted.std((1, 2, 3)) / grey.std((1, 2, 3))
    assert 0.6 <= spread.min() < 0.62
    assert 1.38 < spread.max() <= 1.4


def test_saturation_of_a_factor_is_torchvisions():
    images = photographs(1)
    generator = seeded()
    changed = random_jitter(images, AugmentConfig(saturation=0.9), generator)
    factor = 1 + 0.9 * (2 * torch.rand(1, generator=seeded()).item() - 1)
    torch.testing.assert_close(changed, reference.adjust_saturation(images / 255, factor) * 255, atol=1e-2, rtol=0)


def test_hue_makes_red_green_and_green_blue_at_a_third():
    red, green, blue = (255 * torch.eye(3)).view(3, 1, 3, 1, 1)
    third = torch.full((1, 1, 1, 1), 1 / 3)
    torch.testing.assert_close(shift_hue(red, third), green, atol=1e-2, rtol=0)
    torch.testing.assert_close(shift_hue(green, third), blue, atol=1e-2, rtol=0)
    torch.testing.assert_close(shift_hue(blue, third), red, atol=1e-2, rtol=0)


@pytest.mark.parametrize("share", [-0.5, -0.2, 0.0, 0.1, 0.4])
def test_hue_is_torchvisions(share):
    images = photographs()
    shifted = shift_hue(images, torch.full((16, 1, 1, 1), share))
    torch.testing.assert_close(shifted, reference.adjust_hue(images / 255, share) * 255, atol=0.05, rtol=0)


def test_noise_has_the_deviation_asked_for():
    noisy, _ = colour_batches(AugmentConfig(noise=0.02), num_images=100)(torch.arange(100))
    clean, _ = colour_batches(AugmentConfig(), num_images=100)(torch.arange(100))
    far = (clean > 40) & (clean < 215)  # where nothing is cut off
    assert (noisy - clean)[far].std().item() == pytest.approx(0.02 * 255, rel=0.05)
    assert abs((noisy - clean)[far].mean().item()) < 0.2


@pytest.mark.parametrize(("name", "value"), [("saturation", 0.4), ("hue", 0.1)])
def test_colours_of_images_without_three_channels_are_refused_with_field_and_channels(name, value):
    config = AugmentConfig(**{name: value})
    with pytest.raises(ValueError, match=f"^{name}={value} needs colour images of 3 channels; these have 2$"):
        Batches(split(), INFO, memory_format=torch.channels_last, augment=config, generator=seeded())
    check_channels(config, PIXELS)


# TrivialAugment


def drawn(operation: Operation, strength: float, sign: int = 1, num_images: int = 16) -> Draw:
    return Draw(
        operation=torch.full((num_images,), int(operation)),
        strength=torch.full((num_images,), strength),
        sign=torch.full((num_images,), sign),
    )


def applied(images: torch.Tensor, draw: Draw) -> torch.Tensor:
    return trivial.recolour(resample(images, trivial.maps(images, draw)), draw)


def expected(operation: Operation, images: torch.Tensor, strength: float, sign: int) -> torch.Tensor:
    """What torchvision makes of uint8 images, by its names of the operations."""
    whole = images.to(torch.uint8)
    factor = 1 + 0.99 * strength * sign
    made = {
        Operation.IDENTITY: lambda: whole,
        Operation.BRIGHTNESS: lambda: reference.adjust_brightness(whole, factor),
        Operation.COLOR: lambda: reference.adjust_saturation(whole, factor),
        Operation.CONTRAST: lambda: reference.adjust_contrast(whole, factor),
        Operation.SHARPNESS: lambda: reference.adjust_sharpness(whole, factor),
        Operation.POSTERIZE: lambda: reference.posterize(whole, 8 - round(6 * strength)),
        Operation.SOLARIZE: lambda: reference.solarize(whole, 256 * (1 - strength)),
        Operation.AUTO_CONTRAST: lambda: reference.autocontrast(whole),
        Operation.EQUALIZE: lambda: reference.equalize(whole),
    }
    return made[operation]().to(torch.float32)


COLOUR_OPERATIONS = [Operation.IDENTITY, *list(Operation)[Operation.BRIGHTNESS :]]


@pytest.mark.parametrize("operation", COLOUR_OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize(("strength", "sign"), [(1.0, 1), (1.0, -1), (0.6, 1), (0.3, -1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_operation_on_colours_is_torchvisions(operation, strength, sign, channels):
    images = photographs(channels=channels)
    result = applied(images, drawn(operation, strength, sign))
    # torchvision cuts off what is left of a grey level; sharpening, it rounds before it multiplies.
    torch.testing.assert_close(result, expected(operation, images, strength, sign), atol=2, rtol=0)


def test_equalize_spreads_the_levels_of_a_large_dark_image():
    image = torch.arange(64.0).repeat(64, 1).view(1, 1, 64, 64)
    result = applied(image, drawn(Operation.EQUALIZE, 0.0, num_images=1))
    torch.testing.assert_close(result, expected(Operation.EQUALIZE, image, 0.0, 1))
    assert result.max() > 200


def test_rotation_of_trivial_augment_is_by_135_degrees_at_full_strength():
    images = photographs()[..., :15, :]
    turned = applied(images, drawn(Operation.ROTATE, 90 / 135))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=1, rtol=0)
    torch.testing.assert_close(applied(turned, drawn(Operation.ROTATE, 90 / 135, -1)), images, atol=1, rtol=0)


def test_translations_move_by_up_to_32_pixels_and_shears_row_by_row():
    images = torch.nn.functional.pad(photographs(1, channels=1), (20, 20, 20, 20))
    right = applied(images, drawn(Operation.TRANSLATE_X, 5 / 32, num_images=1))
    torch.testing.assert_close(right, images.roll(5, 3), atol=1, rtol=0)
    down = applied(images, drawn(Operation.TRANSLATE_Y, 5 / 32, -1, num_images=1))
    torch.testing.assert_close(down, images.roll(-5, 2), atol=1, rtol=0)
    # A shear of 2/3 moves the middle of row 1, 1.5 below the top, one pixel to the left, and of row 28 nineteen.
    sheared = applied(images, drawn(Operation.SHEAR_X, 2 / 3 / 0.99, num_images=1))[0, 0]
    for row, moved in ((1, 1), (22, 15), (28, 19), (34, 23)):
        torch.testing.assert_close(sheared[row, :30], images[0, 0, row, moved : 30 + moved], atol=1, rtol=0)
    lower = applied(images.mT, drawn(Operation.SHEAR_Y, 2 / 3 / 0.99, num_images=1))[0, 0]
    torch.testing.assert_close(lower, sheared.mT, atol=1e-2, rtol=0)


def test_translation_is_never_further_than_a_small_image_is_wide():
    image = torch.full((1, 1, 8, 4), 9.0)
    half = applied(image, drawn(Operation.TRANSLATE_X, 0.5, num_images=1))
    assert half[0, 0, 0].tolist() == [0, 0, 9, 9]


def test_trivial_augment_draws_every_operation_and_strength_about_equally_often():
    images = torch.zeros(14 * 31 * 20, 1, 1, 1)
    draw = trivial.draw(images, 1.0, seeded())
    counts = torch.bincount(draw.operation, minlength=14)
    assert len(counts) == len(Operation) == 14
    assert (counts - 620).abs().max() < 125
    strengths, counts = draw.strength.unique(return_counts=True)
    torch.testing.assert_close(strengths, torch.linspace(0, 1, 31))
    assert (counts - 280).abs().max() < 90
    assert abs(draw.sign.float().mean()) < 0.05
    assert trivial.draw(images, 0.5, seeded()).strength.max() == 0.5


def test_an_image_is_changed_by_its_own_operation_alone():
    images = photographs()
    operation = torch.tensor([*range(14), 0, 13])
    mixed = applied(images, Draw(operation=operation, strength=torch.full((16,), 0.7), sign=torch.ones(16)))
    for index, each in enumerate(operation.tolist()):
        alone = applied(images[index : index + 1], drawn(Operation(each), 0.7, num_images=1))
        torch.testing.assert_close(mixed[index : index + 1], alone)


def test_softening_keeps_the_edge_and_spreads_a_dot():
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 13
    assert soften(dot)[0, 0].tolist() == [[0] * 5, [0, 1, 1, 1, 0], [0, 1, 5, 1, 0], [0, 1, 1, 1, 0], [0] * 5]
    assert torch.equal(soften(dot[..., :2, :2]), dot[..., :2, :2])


# MixUp and CutMix


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha):
    shares = symmetric_beta(alpha, 20_000, seeded(), torch.device("cpu")).double()
    # The test of Kolmogorov and Smirnov at 1%, away from the ends, where float32 has no numbers between.
    places = torch.linspace(0.001, 0.999, 999)
    below = (shares[:, None] <= places).double().mean(0)
    assert abs(below.numpy() - scipy.stats.beta(alpha, alpha).cdf(places)).max() < 1.63 / 20_000**0.5


@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1e3, 1e12])
def test_shares_of_any_alpha_are_numbers_from_0_to_1(alpha):
    shares = symmetric_beta(alpha, 20_000, seeded(), torch.device("cpu"))
    assert ((shares >= 0) & (shares <= 1)).all()


def levels(count: int) -> Split:
    """Black images and white ones in turn, of classes 0 and 1: an image's mean is the share of its partner."""
    images = (torch.arange(count) % 2 * 255).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 12, 10)
    return Split(images=images.contiguous(), labels=torch.arange(count) % 2)


@pytest.mark.parametrize(
    "values", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=["mixup", "cutmix", "both"]
)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_targets_are_the_shares_of_the_pixels(values, memory_format):
    made = Batches(
        levels(200), PIXELS, memory_format=memory_format, augment=AugmentConfig(**values), generator=seeded()
    )
    images, targets = made(torch.arange(200))
    assert images.is_contiguous(memory_format=memory_format)
    assert targets.shape == (200, 4)
    torch.testing.assert_close(targets.sum(1), torch.ones(200))
    torch.testing.assert_close(targets[:, 1], images.mean((1, 2, 3)) / 255)
    own = targets[torch.arange(200), torch.arange(200) % 2]
    assert own.min() < 0.1
    assert own.max() > 0.9
    is_pasted = ((images == 0) | (images == 255)).flatten(1).all(1).sum().item()
    low, high = {"mixup": (0, 20), "cutmix": (200, 200)}.get("".join(values), (80, 130))
    assert low <= is_pasted <= high


def test_cutmix_pastes_a_box_of_the_partner_where_it_was():
    count = torch.arange(50, dtype=torch.uint8)
    kept = Split(
        images=count.view(-1, 1, 1, 1) + torch.arange(120, dtype=torch.uint8).view(12, 10).expand(50, 3, -1, -1),
        labels=torch.arange(50) % 4,
    )
    config = AugmentConfig(cutmix=1.0)
    made = Batches(kept, PIXELS, memory_format=torch.channels_last, augment=config, generator=seeded())
    images, _ = made(torch.arange(50))
    weights = cutmix_weights(kept.images.float(), 1.0, seeded())
    chosen = torch.where(weights == 1, kept.images.roll(1, 0), kept.images).float()
    torch.testing.assert_close(images, chosen, atol=1e-3, rtol=0)
    rows, columns = weights.any(3)[:, 0], weights.any(2)[:, 0]
    assert torch.equal(weights[:, 0].bool(), rows[:, :, None] & columns[:, None, :])


def test_cutmix_areas_at_an_alpha_of_1_are_uniform_before_they_are_cut_at_the_edges():
    weights = cutmix_weights(torch.zeros(4000, 1, 80, 40), 1.0, seeded())
    # A side s, of density 2 s, keeps 1 - s / 4 of its length on average: the mean area is that of s^2 (1 - s / 4)^2.
    assert weights.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.012)


def test_with_both_on_each_image_draws_which():
    weights = partner_weights(torch.zeros(2000, 1, 12, 10), AugmentConfig(mixup=1.0, cutmix=1.0), seeded())
    is_blended = ((weights > 0) & (weights < 1)).flatten(1).all(1).sum()
    assert 900 < is_blended < 1100


def test_mixed_targets_are_what_the_loss_takes():
    _, targets = colour_batches(AugmentConfig(mixup=1.0))(torch.arange(64))
    logits = torch.randn(64, 4, generator=seeded())
    loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    smooth = targets * 0.9 + 0.1 / 4
    assert loss.item() == pytest.approx(-(smooth * logits.log_softmax(1)).sum(1).mean().item(), rel=1e-5)
    assert math.isfinite(loss)
