"""Layer-by-layer pruning on small networks, judged by explicit passes of the original and the pruned network."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.models.recipe import Recipe
from bench.models.resnet import bottleneck_resnet, resnet18
from bench.pruning.calibration import Calibration, Sampling, accumulate, at_positions, calibrate, error_curves, rectify
from bench.pruning.graph import Site, trace
from bench.pruning.layerwise import Method, prune
from bench.pruning.reconstruction import reconstruct
from bench.pruning.surgery import SampledConv2d, convolution, remove_filters
from bench.pruning.walk import Walk


class Chain(nn.Module):
    """Stem and reader, with a batch norm behind the reader if asked; the reader's response is the output."""

    def __init__(self, channels: int = 8, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.reader = nn.Conv2d(channels, 5, 3, padding=1, bias=not norm)
        self.norm = nn.BatchNorm2d(5) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 5 x H x W."""
        x = self.reader(F.relu(self.stem(x)))
        return F.relu(x if self.norm is None else self.norm(x))


def busy(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Random biases and batch norms, so that forgetting one of them shows, and signals that stay alive in depth."""
    torch.manual_seed(seed)
    model = factory()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.0, 0.5)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.3)
                module.running_var.uniform_(0.5, 2.0)
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0.0, 0.3)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)  # type: ignore[no-any-return]


def images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def bottleneck() -> nn.Module:
    return bottleneck_resnet(num_classes=5, width=1 / 16, blocks=(2, 1, 1, 1))


def small_resnet18() -> nn.Module:
    return resnet18(num_classes=5, width=1 / 16, small_input=True)


def small_vgg() -> nn.Module:
    recipe = Recipe("vgg16", {"form": "cifar", "num_classes": 5, "width": 1 / 16}, (3, 32, 32))
    return recipe.build()


@torch.no_grad()
def captured(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """The output of a module in the plain forward pass, copied before anything is done to it in place."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    model.eval()(x)
    handle.remove()
    return seen[0]


def relative(first: Tensor, second: Tensor) -> float:
    """|first - second|^2 over the variance of ``second``."""
    return float((first - second).square().sum() / (second - second.mean(0)).square().sum())


@pytest.mark.parametrize(("factory", "size"), [(small_vgg, 32), (small_resnet18, 16), (bottleneck, 16)])
def test_refitting_every_reader_without_removal_changes_nothing(factory: Callable[[], nn.Module], size: int) -> None:
    """The original weights are an exact solution of each least squares: the network comes back."""
    model = busy(factory)
    x = images(150, size)
    calibration = calibrate(model, x, Sampling(positions=12, batch=16), progress=False)
    rebuilt, reports = prune(model, calibration, {}, Method(refit=True, ridges=(1e-9,)), progress=False)
    assert [report.reader for report in reports] == [site.reader for site in calibration.sites]
    assert max(report.error for report in reports) < 1e-5
    assert relative(logits(rebuilt, images(8, size, 5)), logits(model, images(8, size, 5))) < 1e-3


def test_nothing_to_do_is_nothing_done() -> None:
    model = busy(bottleneck)
    calibration = calibrate(model, images(6, 16), Sampling(), progress=False)
    same, reports = prune(model, calibration, {}, Method(), progress=False)
    assert reports == []
    assert torch.equal(same(images(3, 16)), model(images(3, 16)))
    assert same is not model


def test_a_redundant_filter_goes_without_loss() -> None:
    """Filter 2 is twice filter 0 and ReLU is positively homogeneous: seven filters can do what eight did."""
    model = busy(Chain)
    stem = convolution(model, "stem")
    with torch.no_grad():
        assert stem.bias is not None
        stem.weight[2], stem.bias[2] = 2.0 * stem.weight[0], 2.0 * stem.bias[0]
    before = copy.deepcopy(model.state_dict())
    calibration = calibrate(model, images(100), Sampling(positions=20), progress=False)
    pruned, (report,) = prune(model, calibration, {"reader": 7}, Method("exact", ridges=(1e-9,)), progress=False)
    assert {0, 2} - set(report.kept) in ({0}, {2})
    assert (report.reader, report.producer, report.channels) == ("reader", "stem", 8)
    assert report.held_out_error is not None
    assert max(report.error, report.held_out_error) < 1e-6
    assert relative(logits(pruned, images(5, seed=9)), logits(model, images(5, seed=9))) < 1e-6
    assert (convolution(pruned, "stem").out_channels, convolution(pruned, "reader").in_channels) == (7, 7)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def responses(model: Chain, x: Tensor) -> Tensor:
    """N x 5 x H x W before the last ReLU."""
    with torch.no_grad():
        x = model.reader(F.relu(model.stem(x)))
        return x if model.norm is None else model.norm(x)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("selection", "rectify"), [("lasso", 0), ("thinet", 0), ("first k", 0), ("first k", 2)])
def test_reported_errors_are_those_of_the_pruned_network(norm: bool, selection: str, rectify: int) -> None:
    """|Y - Y'|^2 over |Y - mean|^2 at the sampled positions, on the fitted and on the held-out images.

    Y are the responses, also where the least squares had other targets in rounds of rectifying.
    """
    model = busy(lambda: Chain(norm=norm))
    x = images(50)
    calibration = calibrate(model, x, Sampling(positions=15, held_out=0.3, batch=7), progress=False)
    assert int((~calibration.fitted).sum()) == 15
    pruned, (report,) = prune(model, calibration, {"reader": 3}, Method(selection, rectify=rectify), progress=False)
    places = calibration.responses["reader"].positions
    image = torch.arange(50)[:, None]
    truth = responses(model, x)[image, :, places[..., 0], places[..., 1]]  # type: ignore[arg-type]
    ours = responses(pruned, x)[image, :, places[..., 0], places[..., 1]]  # type: ignore[arg-type]
    for flags, reported in ((calibration.fitted, report.error), (~calibration.fitted, report.held_out_error)):
        wanted, found = truth[flags].flatten(0, 1), ours[flags].flatten(0, 1)
        assert reported == pytest.approx(relative(found, wanted), rel=1e-3)
    assert len(report.kept) == 3


@pytest.mark.parametrize("factory", [small_resnet18, bottleneck])
def test_pruning_beats_plain_removal(factory: Callable[[], nn.Module]) -> None:
    """The same filters removed without reconstruction leave a much larger error on new images."""
    model = busy(factory)
    calibration = calibrate(model, images(300, 16), Sampling(positions=16), progress=False)
    sites = [site for site in calibration.sites if site.producer is not None]
    keep = {site.reader: max(1, convolution(model, site.reader).in_channels // 2) for site in sites}
    pruned, reports = prune(model, calibration, keep, Method("exact"), progress=False)
    plain = copy.deepcopy(model)
    for report in reports:
        assert report.producer is not None
        remove_filters(plain, (3, 16, 16), report.producer, sorted(set(range(report.channels)) - set(report.kept)))
    new = images(40, 16, seed=7)
    assert relative(logits(pruned, new), logits(model, new)) < 0.7 * relative(logits(plain, new), logits(model, new))


def test_readers_of_a_stream_get_samplers() -> None:
    model = busy(bottleneck)
    calibration = calibrate(model, images(30, 16), Sampling(), progress=False)
    keep = {"layer1.1.conv1": 10, "layer1.1.conv2": 2}
    pruned, reports = prune(model, calibration, keep, Method(), progress=False)
    sampled = convolution(pruned, "layer1.1.conv1")
    assert isinstance(sampled, SampledConv2d)
    assert sampled.index.tolist() == reports[0].kept
    assert (sampled.in_channels, sampled.out_channels) == (10, 2)
    assert convolution(pruned, "layer1.0.conv3").out_channels == 16
    assert bool(torch.isfinite(pruned(images(2, 16))).all())


def test_target_at_a_branch_end_makes_up_for_the_shortcut() -> None:
    """Moments of Y1 - Y1' + Y2, all three from forward hooks on the original and on a changed network; without
    compensation of Y2 alone."""
    model = busy(bottleneck)
    x = images(20, 16)
    calibration = calibrate(model, x, Sampling(positions=6, batch=8), progress=False)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        convolution(changed, "layer1.0.conv2").weight.mul_(0.5)
        convolution(changed, "layer1.1.conv1").weight.mul_(0.7)
    site = next(s for s in calibration.sites if s.reader == "layer1.1.conv3")
    places = calibration.responses[site.reader].positions
    conv = convolution(changed, site.reader)
    inputs = at_positions_plainly(inputs_of(changed, x, site.reader), places)
    assert conv.kernel_size == (1, 1)
    y1, y1_now = (at_positions_plainly(captured(m, x, "layer1.0"), places) for m in (model, changed))
    y2 = at_positions_plainly(captured(model, x, "layer1.1.bn3"), places)
    graph = trace(changed)
    for compensate, target in ((True, y1 - y1_now + y2), (False, y2)):
        walk = Walk(changed, graph, calibration.batches, "cpu", 1_000_000)
        sampled = accumulate(calibration, walk, site, conv, compensate)
        groups = (calibration.fitted, *calibration.judges)
        for moments, flags in zip((sampled.fitted, *sampled.judges), groups, strict=True):
            rows = flags.repeat_interleave(6)
            xs, ys = inputs[rows].double(), target[rows].double()
            assert moments.count == len(xs)
            torch.testing.assert_close(moments.xx, xs.T @ xs, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(moments.xy, xs.T @ ys, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(moments.yy, ys.square().sum(0), rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(moments.y_sum, ys.sum(0), rtol=1e-4, atol=1e-3)


@torch.no_grad()
def inputs_of(model: nn.Module, x: Tensor, name: str) -> Tensor:
    """The input of a module in the plain forward pass."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    model.eval()(x)
    handle.remove()
    return seen[0]


def at_positions_plainly(maps: Tensor, places: Tensor) -> Tensor:
    """Values at the sampled places, one by one."""
    rows = [maps[image, :, int(r), int(c)] for image in range(len(maps)) for r, c in places[image].tolist()]
    return torch.stack(rows)


def test_at_positions_picks_one_by_one() -> None:
    maps = torch.randn(3, 4, 5, 6)
    places = torch.stack([torch.randint(5, (3, 7)), torch.randint(6, (3, 7))], dim=-1)
    assert torch.equal(at_positions(maps, places), at_positions_plainly(maps, places))


def test_compensation_lowers_the_error_of_the_block() -> None:
    """With a pruned block in front, the next branch repairs a part of what came down the shortcut."""
    model = busy(bottleneck)
    calibration = calibrate(model, images(150, 16), Sampling(positions=12), progress=False)
    keep = {"layer1.0.conv2": 1, "layer1.0.conv3": 1}
    errors = []
    for compensate in (True, False):
        method = Method("exact", compensate=compensate, refit=True)
        pruned, _ = prune(model, calibration, keep, method, progress=False)
        new = images(40, 16, seed=3)
        errors.append(relative(captured(pruned, new, "layer1.1"), captured(model, new, "layer1.1")))
    assert errors[0] < errors[1]


def rectified_error(calibration: Calibration, wanted: Tensor, found: Tensor) -> float:
    """Over the fitted rows the sum of (z - z')^2 where z > 0 and of relu(z')^2 elsewhere; both rows x n."""
    rows = calibration.fitted.repeat_interleave(calibration.sampling.positions)
    z, ours = wanted[rows].double(), found[rows].double()
    return float(torch.where(z > 0, z - ours, ours.relu()).square().sum())


@pytest.mark.parametrize("branch", [False, True])
def test_rectifying_rounds_never_raise_the_rectified_error(branch: bool) -> None:
    """Each round of new targets majorises the rectified error; the first rounds lower it for real."""
    factory: Callable[[], nn.Module] = bottleneck if branch else (lambda: Chain(norm=True))
    reader, norm, size = ("layer1.1.conv3", "layer1.1.bn3", 16) if branch else ("reader", "norm", 8)
    model = busy(factory)
    x = images(40, size)
    calibration = calibrate(model, x, Sampling(positions=20, batch=16), progress=False)
    site = next(s for s in calibration.sites if s.reader == reader)
    assert site.rectified
    conv = convolution(model, reader)
    kept = [0, 2] if branch else [1, 4, 5]
    places = calibration.responses[reader].positions
    shortcut = at_positions_plainly(captured(model, x, "layer1.0"), places) if branch else torch.zeros(1)
    wanted = at_positions_plainly(captured(model, x, norm), places) + shortcut
    inputs = inputs_of(model, x, reader)[:, kept]
    walk = Walk(model, trace(model), calibration.batches, "cpu", 10**9)
    sampled = accumulate(calibration, walk, site, conv, compensate=True)
    errors = []
    current = sampled
    for _ in range(6):
        rebuilt = reconstruct(current, kept, conv.kernel_size, ridges=(1e-12,))  # type: ignore[arg-type]
        maps = F.conv2d(inputs, rebuilt.weight.float(), rebuilt.bias.float(), padding=conv.padding)
        errors.append(rectified_error(calibration, wanted, at_positions_plainly(maps, places) + shortcut))
        current = rectify(calibration, walk, site, conv, sampled, kept, rebuilt.weight, rebuilt.bias)
    assert all(after <= before * (1.0 + 1e-5) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_rectified_pruning_lowers_the_error_behind_the_relu() -> None:
    model = busy(Chain)
    bias = convolution(model, "reader").bias
    assert bias is not None
    with torch.no_grad():
        bias -= 1.5  # most of what the layer answers is cut off by the ReLU
    calibration = calibrate(model, images(150), Sampling(positions=20), progress=False)
    errors = []
    for rounds in (0, 4):
        pruned, _ = prune(model, calibration, {"reader": 3}, Method("exact", rectify=rounds), progress=False)
        new = images(60, seed=4)
        errors.append(float((logits(pruned, new) - logits(model, new)).square().sum()))
    assert errors[1] < 0.99 * errors[0]


class Projected(nn.Module):
    """A block with a convolution on its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.projection = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 6 x H x W."""
        x = F.relu(self.stem(x))
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.projection(x))


def test_rectifying_leaves_a_projection_s_negative_values() -> None:
    """Behind a projection comes a sum, and then the ReLU: where the branch is large, its negative values count."""
    model = busy(Projected)
    with torch.no_grad():
        for name, shift in (("projection", 0.0), ("conv2", 6.0)):
            bias = convolution(model, name).bias
            assert bias is not None
            bias.fill_(shift)
    errors = []
    for rounds in (0, 4):
        calibration = calibrate(
            model, images(150), Sampling(positions=20), wanted=lambda s: s.reader == "projection", progress=False
        )
        method = Method("exact", rectify=rounds)
        pruned, _ = prune(model, calibration, {"projection": 4}, method, progress=False)
        new = images(60, seed=4)
        errors.append(float((logits(pruned, new) - logits(model, new)).square().sum()))
    assert errors[1] <= 1.01 * errors[0]


def test_calibration_is_seeded_and_holds_images_out() -> None:
    model = busy(Chain)
    x = images(40)
    first, again, other = (
        calibrate(model, x, Sampling(positions=5, held_out=0.25, seed=seed), progress=False) for seed in (1, 1, 2)
    )
    assert int((~first.fitted).sum()) == 10
    assert torch.equal(first.fitted, again.fitted)
    assert torch.equal(first.responses["reader"].positions, again.responses["reader"].positions)
    assert torch.equal(first.responses["reader"].response, again.responses["reader"].response)
    assert not torch.equal(first.responses["reader"].positions, other.responses["reader"].positions)
    places = first.responses["reader"].positions
    expected = at_positions_plainly(captured(model, x, "reader"), places)
    torch.testing.assert_close(first.responses["reader"].response, expected, rtol=1e-4, atol=1e-5)


def test_calibration_s_variances_are_explicit() -> None:
    """Of the response and, at a branch end, of the response plus shortcut."""
    model = busy(bottleneck)
    x = images(12, 16)
    calibration = calibrate(model, x, Sampling(positions=5), progress=False)
    seen = calibration.responses["layer1.1.conv3"]
    branch = at_positions_plainly(captured(model, x, "layer1.1.bn3"), seen.positions).double()
    whole = branch + at_positions_plainly(captured(model, x, "layer1.0"), seen.positions).double()
    assert seen.variance == pytest.approx(float((branch - branch.mean(0)).square().sum()), rel=1e-4)
    assert seen.block_variance == pytest.approx(float((whole - whole.mean(0)).square().sum()), rel=1e-4)


def test_missing_images_and_sites_are_user_errors() -> None:
    with pytest.raises(UserError, match="no calibration images"):
        calibrate(busy(Chain), images(0), Sampling(), progress=False)
    with pytest.raises(UserError, match="nothing to prune"):
        calibrate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), images(2), Sampling(), progress=False)


def curve_by_brute_force(model: Chain, calibration: Calibration, x: Tensor) -> list[float]:
    """Error with k = channels … 1 kept by greedily refitting (NumPy-style, in float64) over the fitted rows."""
    places = calibration.responses["reader"].positions
    rows = calibration.fitted.repeat_interleave(calibration.sampling.positions)
    unfolded = F.unfold(inputs_of(model, x, "reader"), 3, padding=1)
    picked = torch.stack(
        [unfolded[i, :, int(r) * x.shape[-1] + int(c)] for i in range(len(x)) for r, c in places[i].tolist()]
    )[rows].double()
    truth = at_positions_plainly(responses(model, x), places)[rows].double()
    picked, truth = picked - picked.mean(0), truth - truth.mean(0)

    def left(kept: list[int]) -> float:
        columns = [c * 9 + k for c in kept for k in range(9)]
        solution = torch.linalg.lstsq(picked[:, columns], truth).solution
        return float((truth - picked[:, columns] @ solution).square().sum())

    kept = list(range(8))
    curve = [left(kept)]
    while len(kept) > 1:
        error, worst = min((left([a for a in kept if a != c]), c) for c in kept)
        kept.remove(worst)
        curve.append(error)
    return [error / float(truth.square().sum()) for error in curve]


def test_error_curve_of_one_layer_equals_greedy_refitting() -> None:
    model = busy(Chain)
    x = images(60)
    calibration = calibrate(model, x, Sampling(positions=20), progress=False)
    curve = error_curves(model, calibration, 1e-9, progress=False)["reader"]
    assert len(curve) == 8
    assert all(a >= b for a, b in itertools.pairwise(curve))
    expected = curve_by_brute_force(model, calibration, x)  # type: ignore[arg-type]
    for ours, theirs in zip(reversed(curve), expected, strict=True):
        # variances over all rows and over the fitted rows differ a little
        assert ours == pytest.approx(theirs, rel=0.05, abs=1e-5)


def test_error_curves_in_a_branch_are_shares_of_the_block_s_output() -> None:
    """What the first removal costs at a branch end, by least squares, over branch plus shortcut."""
    model = busy(bottleneck)
    x = images(60, 16)
    calibration = calibrate(model, x, Sampling(positions=15), progress=False)
    reader = "layer1.1.conv3"
    places = calibration.responses[reader].positions
    branch = at_positions_plainly(captured(model, x, "layer1.1.bn3"), places).double()
    block = branch + at_positions_plainly(captured(model, x, "layer1.0"), places).double()
    inputs = at_positions_plainly(inputs_of(model, x, reader), places).double()
    fitted = calibration.fitted.repeat_interleave(15)
    xs, ys = inputs[fitted] - inputs[fitted].mean(0), branch[fitted] - branch[fitted].mean(0)
    left = []
    for out in range(4):
        rest = xs[:, [c for c in range(4) if c != out]]
        left.append(float((ys - rest @ torch.linalg.lstsq(rest, ys).solution).square().sum()))
    share = min(left) / int(fitted.sum()) / float((block - block.mean(0)).square().sum() / len(block))
    assert error_curves(model, calibration, 1e-9, progress=False)[reader][2] == pytest.approx(share, rel=1e-3)


def test_error_curves_cover_producers_and_asked_for_samplers() -> None:
    model = busy(bottleneck)
    calibration = calibrate(model, images(20, 16), Sampling(), progress=False)
    inner: list[Site] = [site for site in calibration.sites if site.producer is not None]
    assert set(error_curves(model, calibration, 1e-4, progress=False)) == {site.reader for site in inner}
    curves = error_curves(model, calibration, 1e-4, ["layer1.1.conv1"], progress=False)
    assert set(curves) == {site.reader for site in inner} | {"layer1.1.conv1"}
    assert len(curves["layer1.1.conv1"]) == 16


def test_the_pruned_network_shares_no_memory_with_the_original() -> None:
    """Whatever is shared during the walk, afterwards each network can be trained without changing the other."""
    model = busy(bottleneck)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    calibration = calibrate(model, images(20, 16), Sampling(positions=4), progress=False)
    pruned, _ = prune(model, calibration, {"layer1.0.conv2": 1}, Method("lasso", refit=True), progress=False)
    with torch.no_grad():
        for tensor in pruned.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
