"""Sites against lists written by hand, and the values of a walk against forward hooks on the plain network."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.models.cifar_resnet import CifarResNet
from bench.models.recipe import Recipe
from bench.models.resnet import bottleneck_resnet, resnet18
from bench.pruning.graph import Site, find_sites, reader_node, trace
from bench.pruning.surgery import convolution, remove_filters, sample_input
from bench.pruning.walk import Walk

PLENTY = 1_000_000_000


def sites_of(model: nn.Module) -> list[Site]:
    return find_sites(model, trace(model))


def on_meta(builder: str) -> nn.Module:
    return Recipe(builder, {}, (3, 32, 32)).build("meta")


def shape_of(model: nn.Module, node: str | None) -> str | None:
    """What a graph node is: the module that it calls, or its function's name."""
    if node is None:
        return None
    found = next(n for n in trace(model).nodes if n.name == node)
    return str(found.target) if found.op == "call_module" else getattr(found.target, "__name__", str(found.target))


def test_sites_of_vgg16() -> None:
    """Each convolution but the first reads the one before it, across ReLU and pooling."""
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    expected = [
        Site(f"features.{reader}", f"features.{producer}", None, None, None, True)
        for producer, reader in itertools.pairwise(places)
    ]
    assert sites_of(on_meta("vgg16")) == expected


def test_sites_of_resnet20() -> None:
    """Option A has no convolution on the shortcut: two sites in each of nine blocks."""
    model = on_meta("cifar_resnet20")
    found = sites_of(model)
    expected = []
    for stage, block in itertools.product((1, 2, 3), range(3)):
        name = f"layer{stage}.{block}"
        first = (f"{name}.conv1", None, f"{name}.bn1", None, f"{name}.conv2", True)
        # the last ReLU of the block before, or the padded shortcut where the map shrinks
        if block == 0 and stage > 1:
            shortcut = "pad"
        else:
            shortcut = "relu" if (stage, block) == (1, 0) else f"layer{stage}.{block - 1}.relu"
        last = (f"{name}.conv2", f"{name}.conv1", f"{name}.bn2", shortcut, f"{name}.conv2", True)
        expected += [first, last]
    rows = [(s.reader, s.producer, s.batch_norm, shape_of(model, s.shortcut), s.branch_end, s.rectified) for s in found]
    assert rows == expected


def test_sites_of_resnet50() -> None:
    """Three sites in each of sixteen blocks, and the four projections, which are nobody's branch."""
    model = on_meta("resnet50")
    found = {site.reader: site for site in sites_of(model)}
    assert len(found) == 3 * 16 + 4
    for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            one, two, three = (found[f"{name}.conv{i}"] for i in (1, 2, 3))
            assert (one.producer, two.producer, three.producer) == (None, f"{name}.conv1", f"{name}.conv2")
            assert [s.batch_norm for s in (one, two, three)] == [f"{name}.bn{i}" for i in (1, 2, 3)]
            assert [s.branch_end for s in (one, two, three)] == [f"{name}.conv3"] * 3
            assert (one.shortcut, two.shortcut) == (None, None)
            wanted = f"{name}.downsample.1" if block == 0 else f"layer{stage}.{block - 1}.relu"
            assert shape_of(model, three.shortcut) == wanted
            assert one.rectified
            assert two.rectified
            assert three.rectified
        projection = found[f"layer{stage}.0.downsample.0"]
        assert (projection.producer, projection.shortcut, projection.branch_end) == (None, None, None)
        assert projection.batch_norm == f"layer{stage}.0.downsample.1"


def test_shortcut_of_a_block_is_the_whole_sum_behind_the_block_before() -> None:
    """The graph calls one ReLU module several times; the shortcut must be its last call, behind the addition."""
    model = bottleneck_resnet(width=1 / 16, blocks=(2, 1, 1, 1))
    graph = trace(model)
    site = next(s for s in find_sites(model, graph) if s.reader == "layer1.1.conv3")
    shortcut = next(n for n in graph.nodes if n.name == site.shortcut)
    assert shortcut is reader_node(graph, "layer1.1.conv1").all_input_nodes[0]


def test_a_projection_is_not_rectified_by_the_block_s_relu() -> None:
    """The ReLU comes behind the sum with the branch, which is no part of the projection's own target: to treat the
    projection's response as rectified would throw away its negative values, which the sum needs."""
    found = {site.reader: site for site in sites_of(on_meta("resnet50"))}
    assert not found["layer1.0.downsample.0"].rectified


class Odd(nn.Module):
    """What must be left out or treated with care: a shared convolution, groups, two readers, string padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.after = nn.Conv2d(4, 6, 1)
        self.left = nn.Conv2d(6, 3, 1)
        self.right = nn.Conv2d(6, 3, 1)
        self.same = nn.Conv2d(6, 5, 3, padding="same")
        self.last = nn.Conv2d(5, 2, 1)
        self.head = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 2 x H x W."""
        x = self.twice(self.twice(self.stem(x)))
        x = F.relu(self.after(self.grouped(x)))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(torch.sigmoid(self.last(self.same(x))))  # type: ignore[no-any-return]


def test_odd_networks_give_only_safe_sites() -> None:
    """Shared, grouped and string-padded convolutions are no readers, and no producer has a second reader."""
    found = {site.reader: site for site in sites_of(Odd())}
    assert set(found) == {"after", "left", "right", "last", "head"}
    assert all(site.producer is None for site in found.values())
    assert not any(site.rectified for name, site in found.items() if name != "after")
    assert found["after"].rectified


def test_a_branch_that_is_rectified_before_the_sum_has_no_end_to_compensate() -> None:
    """Behind a ReLU the last convolution cannot make up for what came down the shortcut."""

    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.conv1 = nn.Conv2d(4, 4, 1)
            self.conv2 = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return x + F.relu(self.conv2(F.relu(self.conv1(x))))

    found = sites_of(Early())
    assert [(site.reader, site.producer, site.shortcut, site.branch_end) for site in found] == [
        ("conv1", None, None, None),
        ("conv2", "conv1", None, None),
    ]


def test_untraceable_network_is_a_user_error() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match="cannot trace Branching"):
        trace(Branching())


def test_sampled_convolutions_stay_convolutions_in_the_graph() -> None:
    """A network that got its channel samplers can be pruned again: its inner filters are still sites."""
    model = bottleneck_resnet(width=1 / 16, blocks=(1, 1, 1, 1))
    sample_input(model, "layer1.0.conv1", [0, 2])
    found = {site.reader: site for site in sites_of(model)}
    assert found["layer1.0.conv2"].producer == "layer1.0.conv1"


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg16": lambda: Recipe("vgg16", {"form": "cifar", "num_classes": 5, "width": 1 / 16}, (3, 32, 32)).build(),
    "resnet18": lambda: resnet18(num_classes=5, width=1 / 16, small_input=True),
    "cifar resnet": lambda: CifarResNet(14, num_classes=5, width=0.25),
    "bottleneck": lambda: bottleneck_resnet(num_classes=5, width=1 / 16, blocks=(2, 1, 1, 1)),
}


def busy(factory: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Random weights, biases and batch norms: a dead network would make every comparison true."""
    torch.manual_seed(seed)
    model = factory()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
                module.weight.uniform_(0.5, 1.5)
                assert module.running_mean is not None
                module.running_mean.normal_()
            elif isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_(0.0, 0.3)
    return model.eval()


def images(count: int, size: int = 32) -> list[Tensor]:
    """Batches of 4 with a smaller last one."""
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 3, size, size, generator=generator).split(4))  # type: ignore[no-untyped-call]


@torch.no_grad()
def hooked(model: nn.Module, x: Tensor, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Input and output of modules in the plain forward pass (copied: in-place activations would change them)."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[name] = (inputs[0].clone(), output.clone())

        return hook

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    model.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


def plain_shortcut(model: nn.Module, site: Site, x: Tensor) -> Tensor:
    """What the block of ``site`` adds to its branch, from the block's own input and shortcut modules."""
    name = site.reader.rpartition(".")[0]
    block = model.get_submodule(name)
    with torch.no_grad():
        entering = hooked(model, x, [name])[name][0]
        if isinstance(getattr(block, "shortcut", None), Callable):  # type: ignore[arg-type]
            return block.shortcut(entering)  # type: ignore[operator, no-any-return]
        if block.downsample is None:
            return entering
        return block.downsample(entering)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("budget", [0, 40_000, PLENTY])
@pytest.mark.parametrize("network", NETWORKS)
def test_visits_equal_forward_hooks(network: str, budget: int) -> None:
    """Input and shortcut of every site for every batch, recomputed (0), partly kept, or kept."""
    model = busy(NETWORKS[network])
    plain = copy.deepcopy(model)
    batches = images(10)
    graph = trace(model)
    sites = find_sites(model, graph)
    names = [site.reader for site in sites]
    truth = [hooked(plain, batch, names) for batch in batches]
    walk = Walk(model, graph, batches, "cpu", budget)
    for site in sites:
        visited = list(walk.visit(site.reader, site.shortcut))
        assert len(visited) == len(batches)
        for (x, shortcut), expected, batch in zip(visited, truth, batches, strict=True):
            torch.testing.assert_close(x, expected[site.reader][0], rtol=1e-4, atol=1e-5)
            assert (shortcut is None) == (site.shortcut is None)
            if shortcut is not None:
                torch.testing.assert_close(shortcut, plain_shortcut(plain, site, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [0, 100_000, PLENTY])
@pytest.mark.parametrize("network", NETWORKS)
def test_visits_follow_removals(network: str, budget: int) -> None:
    """After each site filters go, weights change and samplers come: the next inputs are the changed network's."""
    model = busy(NETWORKS[network])
    batches = images(6)
    graph = trace(model)
    walk = Walk(model, graph, batches, "cpu", budget)
    for site in find_sites(model, graph):
        for (x, _), batch in zip(list(walk.visit(site.reader, site.shortcut)), batches, strict=True):
            expected = hooked(copy.deepcopy(model), batch, [site.reader])[site.reader][0]
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
        channels = convolution(model, site.reader).in_channels
        kept = list(range(1, channels, 2))
        if site.producer is not None:
            remove_filters(model, (3, 32, 32), site.producer, sorted(set(range(channels)) - set(kept)))
            walk.select(site.reader, torch.tensor(kept))
        elif site.branch_end is not None:
            sample_input(model, site.reader, kept)
        with torch.no_grad():
            convolution(model, site.reader).weight.mul_(1.25)


def test_a_reader_may_be_visited_again() -> None:
    """Rounds of new targets pass over one reader several times."""
    model = busy(NETWORKS["bottleneck"])
    graph = trace(model)
    walk = Walk(model, graph, images(6), "cpu", PLENTY)
    first = list(walk.visit("layer1.0.conv3", "layer1_0_downsample_1"))
    second = list(walk.visit("layer1.0.conv3", "layer1_0_downsample_1"))
    for (x, shortcut), (again, shortcut_again) in zip(first, second, strict=True):
        assert torch.equal(x, again)
        assert shortcut is not None
        assert shortcut_again is not None
        assert torch.equal(shortcut, shortcut_again)


class Parallel(nn.Module):
    """Two branches whose convolutions run interleaved, as in an Inception block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.reduce = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 16, 1)
        self.expand = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 2 x H x W."""
        x = F.relu(self.stem(x))
        narrow = F.relu(self.reduce(x))
        wide = F.relu(self.wide(x))
        return self.head(torch.cat([wide, F.relu(self.expand(narrow))], 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("budget", [0, 4 * 8 * 64 * 4, PLENTY])
def test_removals_reach_values_kept_for_an_earlier_reader(budget: int) -> None:
    """With a budget that holds the values at one reader but not at the next, the filters' channels are still live in
    what was kept earlier and must go there too."""
    model = busy(Parallel)
    generator = torch.Generator().manual_seed(0)
    batches = list(torch.randn(4, 3, 8, 8, generator=generator).split(2))  # type: ignore[no-untyped-call]
    graph = trace(model)
    walk = Walk(model, graph, batches, "cpu", budget)
    for site in find_sites(model, graph):
        for (x, _), batch in zip(list(walk.visit(site.reader)), batches, strict=True):
            expected = hooked(copy.deepcopy(model), batch, [site.reader])[site.reader][0]
            torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-5)
        if site.producer is not None:
            remove_filters(model, (3, 8, 8), site.producer, [0, 3])
            walk.select(site.reader, torch.tensor([1, 2]))


def test_batches_of_the_caller_are_not_changed() -> None:
    model = busy(NETWORKS["vgg16"])
    batches = images(5)
    copies = [batch.clone() for batch in batches]
    graph = trace(model)
    walk = Walk(model, graph, batches, "cpu", PLENTY)
    for site in find_sites(model, graph):
        list(walk.visit(site.reader))
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))


class Normalising(nn.Module):
    """A network that normalises its input in place and has functional in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """N x 3 x H x W to N x 2 x H x W."""
        x = F.leaky_relu(self.stem(x.sub_(0.5).div_(0.25)), inplace=True)
        return self.head(F.leaky_relu(self.body(x), inplace=True))  # type: ignore[no-any-return]


def test_in_place_operations_are_not_done_twice() -> None:
    """Running a prefix again starts from the same images, whatever the network does to them in place."""
    model = busy(Normalising)
    batches = images(4, size=8)
    copies = [batch.clone() for batch in batches]
    truth = [hooked(copy.deepcopy(model), batch.clone(), ["body", "head"]) for batch in batches]
    graph = trace(model)
    walk = Walk(model, graph, batches, "cpu", 0)
    for name in ("body", "head"):
        for (x, _), expected in zip(list(walk.visit(name)), truth, strict=True):
            torch.testing.assert_close(x, expected[name][0], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(batches, copies, strict=True))


def test_tracing_changes_no_output() -> None:
    """The network keeps its in-place activations and computes what it did."""
    model = busy(NETWORKS["vgg16"])
    x = images(3)[0]
    with torch.no_grad():
        before = model(x)
        trace(model)
        assert torch.equal(model(x), before)
    assert any(getattr(module, "inplace", False) for module in model.modules())
