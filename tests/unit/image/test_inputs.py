"""The content address of the guest image moves with everything that goes into it, and with nothing else."""

from sandpool_image.inputs import BaseInputs, base_id, image_id


def test_the_slow_layer_is_addressed_by_suite_and_packages() -> None:
    assert base_id(BaseInputs()) == base_id(BaseInputs())
    assert base_id(BaseInputs()) != base_id(BaseInputs(packages=("python3",)))
    assert base_id(BaseInputs()) != base_id(BaseInputs(suite="sid"))


def test_a_change_of_one_file_is_another_image_on_the_same_base() -> None:
    files = {"init": b"1", "opt/a": b"2"}
    assert image_id("b", files) == image_id("b", dict(reversed(files.items())))
    assert image_id("b", files) != image_id("b", {**files, "opt/a": b"3"})
    assert image_id("b", files) != image_id("b", {"init": b"1", "opt/b": b"2"})
    assert image_id("b", files) != image_id("c", files)
