"""Keys: what a step's number depends on is in its key, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from bench import processes, provenance
from bench.data.annotations import Annotation, DetectionSet, DetectionSplit
from bench.data.digits import digits_images
from bench.data.identity import value_of
from bench.data.images import FileSplit, ImageSet, MemorySplit
from bench.models.recipe import Recipe
from bench.steps import Context, DataValue, Kind, Step, canonical, make_step
from bench.store import Result
from bench.train.schedule import Schedule
from bench.train.steps import Training, run_trained


@dataclass(frozen=True)
class Params:
    """A number, and one more with a default."""

    number: float
    more: int = 3


def run_nothing(context: Context, parents: list[Result], params: Params) -> Result:
    """Uses torch, so that its version counts."""
    torch.zeros(1)
    return Result()


DATA = DataValue("plain", "training")


def step(
    kind: Kind = Kind.TRAIN,
    number: float = 1.0,
    more: int = 3,
    parents: tuple[Step, ...] = (),
    data: DataValue | None = DATA,
    device: str = "cpu",
    name: str = "a",
) -> Step:
    return make_step(kind, name, run_nothing, Params(number, more), parents, data=data, device=device)


def test_a_key_holds_parents_parameters_data_and_device() -> None:
    base = step()
    others = [
        step(number=2.0),
        step(more=4),
        step(parents=(base,)),
        step(parents=(step(number=2.0),)),
        step(data=DataValue("plain", "other")),
        step(device="cuda"),
    ]
    assert step().key == base.key
    assert len({base.key, *(other.key for other in others)}) == 7
    # the name is for people; training does not read the data without augmentation
    assert step(name="b").key == base.key
    assert step(data=DataValue("other", "training")).key == base.key
    evaluation = step(Kind.EVALUATE)
    assert step(Kind.EVALUATE, data=DataValue("plain", "other")).key == evaluation.key
    assert step(Kind.EVALUATE, data=DataValue("other", "training")).key != evaluation.key


def keys() -> dict[Kind, str]:
    return {kind: step(kind).key for kind in Kind}


def changed(before: dict[Kind, str]) -> set[str]:
    return {kind.value for kind, key in keys().items() if key != before[kind]}


def test_the_environment_counts_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, processes, versions, TF32 and the device's name, each for the kinds whose numbers they can change."""
    before = keys()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert changed(before) == {"train", "prune", "time"}
    finally:
        torch.set_num_threads(threads)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        assert changed(before) == {"train"}
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "versions", lambda: dict.fromkeys(provenance.PACKAGES, "9.9"))
        assert changed(before) == {"train", "prune", "evaluate", "time"}
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_processor", lambda: "another processor")
        assert changed(before) == {"time"}
    with monkeypatch.context() as patch:  # processors of one name are told apart in provenance alone
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "of another one")
        assert provenance.hardware("cpu")["capability"] == "of another one"
        assert changed(before) == set()
    assert changed(before) == set()
    assert processes.launched() == 1


def test_on_a_gpu_tf32_counts_and_threads_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    before = {kind: step(kind, device="cuda").key for kind in Kind}

    def differing() -> set[str]:
        return {kind.value for kind in Kind if step(kind, device="cuda").key != before[kind]}

    flag = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = not flag
        assert differing() == {"train", "prune", "evaluate", "time"}
    finally:
        torch.backends.cudnn.allow_tf32 = flag
    assert provenance.hardware("cuda")["name"] == "H100" and "capability" not in provenance.hardware("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    assert differing() == {"time"}


def test_only_versions_of_packages_that_the_code_uses_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training a classifier uses no scikit-learn: another version of it retrains nothing."""
    recipe = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16))
    params = Training(Schedule(1, 0.1), 0, recipe)

    def key() -> str:
        return make_step(Kind.TRAIN, "t", run_trained, params, data=DATA, device="cpu").key

    before, real = key(), provenance.versions()
    assert real["torch"] == metadata.version("torch")
    for package, counts in (("scikit-learn", False), ("opencv-python-headless", False), ("onedl-mmengine", True)):
        monkeypatch.setattr(provenance, "versions", lambda p=package: {**real, p: "9.9"})
        assert (key() != before) == counts, package


def test_parameters_are_hashed_without_what_has_its_default() -> None:
    assert canonical(Params(2.0)) == canonical(Params(2.0, 3)) == {"type": "Params", "number": 2}
    assert canonical(Params(2.0, 4)) == {"type": "Params", "number": 2, "more": 4}
    # by value, not by how it was written; nested; a list is a tuple
    assert canonical({"b": (1, 2.0), "a": [Params(0.5)]}) == {"a": [{"type": "Params", "number": 0.5}], "b": [1, 2]}
    # the order of a list counts: densities one after the other, readers of one seed
    assert canonical([3, 1, 2]) == [3, 1, 2] != canonical([1, 2, 3])
    with pytest.raises(TypeError, match="set"):
        canonical({1, 2})


def test_a_recipe_s_builder_is_in_the_key_but_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("cifar_resnet20", {"num_classes": 10}, (3, 16, 16))
    found = make_step(Kind.TRAIN, "t", run_trained, Training(Schedule(1, 0.1), 0, recipe), data=DATA, device="cpu")
    modules = {module for module, _ in found.code.definitions}
    assert {"bench.models.cifar_resnet", "bench.train.fit", "bench.data.augment", "bench.train.onednn"} <= modules
    unneeded = ("bench.models.vgg", "bench.models.ssd", "bench.gating", "bench.measure", "bench.report", "bench.cli")
    assert not {module for module in modules if module.startswith((*unneeded, "reproductions"))}


# --------------------------------------------------------------------------------------------------------------------
# Data


def split(**changes: object) -> MemorySplit:
    images = torch.arange(4 * 3 * 8 * 8, dtype=torch.int64).remainder(251).to(torch.uint8).reshape(4, 3, 8, 8)
    values: dict[str, object] = {
        "images": images,
        "labels": torch.tensor([0, 1, 0, 1]),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "pad": 1,
        "mirror": False,
        **changes,
    }
    return MemorySplit(**values)  # type: ignore[arg-type]


def image_set(train: MemorySplit, **changes: object) -> ImageSet:
    values: dict[str, object] = {"name": "x", "fingerprint": "f", "classes": ("a", "b"), "size": 8, "protocol": "8x8"}
    return ImageSet(**{**values, **changes}, train=train, test=split())  # type: ignore[arg-type]


def test_data_enter_by_content_protocol_size_and_transforms() -> None:
    """Not by name or place; the labels count, the normalisation counts, the augmentation only in training."""
    base = value_of(image_set(split()))
    assert value_of(image_set(split(), name="other", fingerprint="elsewhere")) == base
    pixels = split().images.clone()
    pixels[0, 0, 0, 0] += 1
    different = [
        value_of(image_set(split(images=pixels))),
        value_of(image_set(split(labels=torch.tensor([1, 1, 0, 1])))),
        value_of(image_set(split(mean=(0.4, 0.5, 0.5)))),
        value_of(image_set(split(std=(0.4, 0.5, 0.5)))),
        value_of(image_set(split(), protocol="9x9")),
        value_of(image_set(split(), size=9)),
    ]
    assert len({base.plain, *(value.plain for value in different)}) == 7
    assert len({base.training, *(value.training for value in different)}) == 7
    for augmented in (value_of(image_set(split(pad=2))), value_of(image_set(split(mirror=True)))):
        assert augmented.plain == base.plain
        assert augmented.training != base.training


def test_the_protocol_of_image_files_is_in_the_value(tmp_path: Path) -> None:
    def value(protocol: str, label: int = 0) -> DataValue:
        part = FileSplit([(tmp_path / "a.png", label)], 224, protocol)
        return value_of(ImageSet("x", "f", ("a", "b"), 224, part, part, protocol))

    assert value("short256") == value("short256")
    assert len({value("short256").plain, value("squash256").plain, value("short256", 1).plain}) == 3


def test_files_enter_by_their_fingerprint_and_normalisation(tmp_path: Path) -> None:
    """They are not in memory, so the set's fingerprint stands for what they hold."""
    part = FileSplit([(tmp_path / "a.png", 0)], 224, "short256")

    def value(fingerprint: str, split_: FileSplit = part) -> DataValue:
        return value_of(ImageSet("x", fingerprint, ("a", "b"), 224, split_, split_, "short256"))

    shifted = [part.normalised_by((0.1,) * 3, part.std), part.normalised_by(part.mean, (0.1,) * 3)]
    values = [value("f"), value("g"), *(value("f", other) for other in shifted)]
    assert len({one.plain for one in values}) == len({one.training for one in values}) == 4


def test_boxes_labels_and_flags_of_a_detection_set_count(tmp_path: Path) -> None:
    def value(box: float = 5.0, label: int = 0, difficult: bool = False, fingerprint: str = "f", size: int = 64) -> str:
        one = Annotation(
            "1", tmp_path / "1.png", 20, 20, torch.tensor([[1.0, 1.0, box, 9.0]]), torch.tensor([label]),
            torch.tensor([difficult]),
        )  # fmt: skip
        split_ = DetectionSplit([one], [])
        return value_of(DetectionSet("x", fingerprint, ("a", "b"), size, split_, split_, "p", "voc", {})).plain

    found = [value(), value(box=6.0), value(label=1), value(difficult=True), value(fingerprint="g"), value(size=65)]
    assert value() == found[0] and len(set(found)) == 6


def test_digits_change_with_their_normalisation() -> None:
    data = digits_images(16)
    train = data.train
    assert isinstance(train, MemorySplit)
    other = MemorySplit(train.images, train.labels, (0.4,) * 3, (0.5,) * 3, pad=1, mirror=False)
    assert value_of(data) != value_of(replace(data, train=other))


def test_a_step_function_of_the_script_that_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``python my_paper.py``: the function's module is ``__main__``, its code that of the file."""
    script = tmp_path / "my_paper.py"
    text = "from bench.store import Result\n\ndef run_mine(context, parents, params):\n    return Result(facts={})\n"
    script.write_text(text + "\nif __name__ == '__main__':\n    print('runs')\n")
    module = type(sys)("__main__")
    module.__file__ = str(script)
    module.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(script.read_text().partition("\nif")[0], str(script), "exec"), module.__dict__)
    found = make_step(Kind.TRAIN, "mine", module.run_mine, Params(1.0), device="cpu")
    assert len(found.key) == 32
    assert any(name == "run_mine" for _, name in found.code.definitions)


# --------------------------------------------------------------------------------------------------------------------
# The commit


def _git(place: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", *identity, *arguments], cwd=place, check=True, capture_output=True)


@pytest.mark.parametrize("where", ["site-packages", "checkout"])
def test_only_a_checkout_of_our_own_tells_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Installed in a virtual environment inside somebody's project, that project's commit is not ours."""
    root = tmp_path if where == "checkout" else tmp_path / ".venv" / "lib" / "site-packages"
    (root / "bench").mkdir(parents=True)
    module = root / "bench" / "provenance.py"
    module.write_text("")
    (tmp_path / "theirs.py").write_text("")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", "theirs.py", *(["bench"] if where == "checkout" else []))
    _git(tmp_path, "commit", "-qm", "x")
    monkeypatch.setattr(provenance, "__file__", str(module))
    provenance.git_state.cache_clear()
    try:
        found = provenance.git_state()
        if where == "site-packages":
            assert found is None
        else:
            head = subprocess.run(
                ["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True
            )
            assert found == head.stdout.strip()
            module.write_text("changed = 1")
            provenance.git_state.cache_clear()
            assert provenance.git_state() == f"{found}-dirty"
    finally:
        provenance.git_state.cache_clear()
