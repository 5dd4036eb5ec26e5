import onnx
import pytest
import torch

from conftest import make_vit
from exports.conftest import PREPROCESSING, nothing_but, tiny
from patchmerger.exports import ExportSettings, ParityError, export, writing
from patchmerger.exports.metadata import ExportedMerger
from patchmerger.reports.html.kinds import section_of
from patchmerger.reports.html.reading import read_sources
from patchmerger.runs.files import read_json


def test_what_is_exported_is_described(onnx_file):
    info, parity = onnx_file.info, onnx_file.parity
    assert (info.image_size, info.channels, info.num_classes) == ((32, 32), 3, 5)
    assert info.preprocessing == PREPROCESSING
    assert info.mergers == (ExportedMerger(1, 4, 1, "PatchMerger"),)
    assert parity.batches == (1, 3, 32)
    assert parity.largest < 1e-5
    assert parity.agreement == 1
    assert not parity.real


def test_the_record_beside_the_file_says_how_it_was_compared_and_is_reported(onnx_file):
    record = read_json(onnx_file.record)
    assert onnx_file.record == onnx_file.path.with_name("tiny.onnx.json")
    assert (record["kind"], record["command"], record["file"]) == ("export", "patchmerger export tiny", "tiny.onnx")
    assert record["size"] == onnx_file.path.stat().st_size
    assert record["parity"]["largest"] == onnx_file.parity.largest
    assert record["tolerance"] == {"max_difference": 1e-3, "min_agreement": 0.999}
    assert record["runtime"].startswith("onnxruntime ")
    assert record["environment"]["onnx"] == onnx.__version__
    assert (record["info"]["image_size"], record["settings"]["format"]) == ([32, 32], "onnx")
    (source,), unread = read_sources([onnx_file.path.parent])
    assert unread == []
    found = section_of(source)
    assert found.missing == []
    assert found.title == "VisionTransformer as onnx, fp32"
    assert [table.caption for table in found.tables] == ["Compared with the eager model in float32", "The file"]
    assert any("PatchMerger to 4 tokens after block 1" in cell.text for row in found.tables[1].rows for cell in row)


def test_an_onnx_file_names_its_input_output_and_batch_and_no_path_of_this_machine(onnx_file):
    proto = onnx.load(onnx_file.path)
    (given,), (gives,) = proto.graph.input, proto.graph.output
    assert (given.name, gives.name) == ("images", "logits")
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    assert [d.dim_param or d.dim_value for d in gives.type.tensor_type.shape.dim] == ["batch", 5]
    assert proto.opset_import[0].version == ExportSettings().opset
    assert proto.producer_name == "patchmerger"
    assert b"site-packages" not in onnx_file.path.read_bytes()
    assert nothing_but(onnx_file.path.parent, "tiny.onnx", "tiny.onnx.json")


def test_the_model_stays_as_it_is(monkeypatch, tmp_path):
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with monkeypatch.context() as patched:
        patched.setattr(writing, "write_onnx", lambda *_: (_ for _ in ()).throw(OSError("stop here")))
        with pytest.raises(OSError, match="stop here"):
            export(model, tmp_path / "x.onnx")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert nothing_but(tmp_path)


def test_a_file_that_gives_other_outputs_is_not_left(monkeypatch, tmp_path, onnx_file):
    """A weight that is written wrongly, as an exporter with a defect would."""

    def damaged(program, model, path, info, settings):
        proto = onnx.load(onnx_file.path)
        head = next(each for each in proto.graph.initializer if list(each.dims) == [5])
        head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) + 1, head.name))
        onnx.save(proto, path)
        return {}

    monkeypatch.setattr(writing, "write_onnx", damaged)
    (tmp_path / "old.onnx").write_bytes(b"the old one")
    (tmp_path / "old.onnx.json").write_text('{"kind": "export"}')
    with pytest.raises(ParityError, match=r"onnx \(fp32\).*largest difference.*no file was written"):
        export(tiny(), tmp_path / "old.onnx", overwrite=True)
    assert (tmp_path / "old.onnx").read_bytes() == b"the old one"
    assert nothing_but(tmp_path, "old.onnx", "old.onnx.json")


def test_int8_without_images_is_refused_before_long_work(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "trace", lambda *_: pytest.fail("traced"))
    with pytest.raises(ValueError, match=r"precision \('int8'\) needs data"):
        export(tiny(), tmp_path / "x.onnx", ExportSettings(precision="int8"))
    assert nothing_but(tmp_path)


def test_a_size_whose_edges_would_be_cut_off_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image_size \(39, 39\) does not divide by the patch size.*\(40, 40\)"):
        export(tiny(), tmp_path / "x.onnx", ExportSettings(image_size=39))
    assert nothing_but(tmp_path)


def test_the_home_folder_may_be_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = export(tiny(), "~/x.pt2", ExportSettings(format="torch"))
    assert made.path == tmp_path / "x.pt2"
    assert made.path.exists()
    assert made.record.exists()


def test_what_is_there_is_replaced_only_when_asked_and_only_if_it_is_an_export(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"x\.onnx\) exists already.*overwrite"):
        export(tiny(), tmp_path / "x.onnx")
    with pytest.raises(FileExistsError, match=r"x\.onnx\) is no export.*x\.onnx\.json"):
        export(tiny(), tmp_path / "x.onnx", overwrite=True)
    (tmp_path / "y.onnx.json").write_text('{"mine": true}')
    with pytest.raises(FileExistsError, match=r"record would replace .*y\.onnx\.json"):
        export(tiny(), tmp_path / "y.onnx", overwrite=True)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"photos\) holds more than an export \(a\.jpg\)"):
        export(tiny(), folder, ExportSettings(format="openvino"), overwrite=True)
    with pytest.raises(ValueError, match=r"model \(.*x\.onnx\) is an exported file already"):
        export(tmp_path / "x.onnx", tmp_path / "y.onnx")
    with pytest.raises(ValueError, match=r"out \(.*photos\) must end with \.onnx"):
        export(tiny(), folder, overwrite=True)
    assert (tmp_path / "x.onnx").read_bytes() == b"mine"


def test_an_operation_without_a_counterpart_is_named(tmp_path, monkeypatch):
    model = make_vit(depth=1, embed_dim=16)
    model.head.forward = lambda x: torch.linalg.eigvals(x.unsqueeze(-1) * x.unsqueeze(-2)).real[:, :5]
    with pytest.raises(ValueError, match=r"VisionTransformer\) cannot be written as ONNX.*aten\.linalg_eig"):
        export(model, tmp_path / "x.onnx")
    assert nothing_but(tmp_path)
