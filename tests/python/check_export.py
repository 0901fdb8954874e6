"""Opens exported files with the programs they are for. Usage: check_export.py FOLDER ARCH DIM DATASET

FOLDER has run/, whole.safetensors, backbone.safetensors, timm/, huggingface/, table.parquet, projector/, and another
run, cifar/, with val.arrow, its embedding of the dataset's `val`. The images have that network's size.
"""

import csv
import io
import pickle
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification

folder, arch, dim = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
dataset = Path(sys.argv[4])
tools = Path(__file__).parents[2] / "jobs/tools"


def tool(name, *arguments):
    subprocess.run([sys.executable, tools / name, *arguments], check=True, stdout=sys.stderr)


model = getattr(torchvision.models, arch)(num_classes=dim)
for file in ("run/checkpoints/step-00000002/model.safetensors", "whole.safetensors"):
    model.load_state_dict(load_file(folder / file))
assert pa.ipc.open_file(folder / "run/checkpoints/step-00000002/bank.arrow").read_all().num_rows > 0
backbone = getattr(torchvision.models, arch)()
backbone.fc = torch.nn.Identity()
backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
images = torch.rand(2, 3, 64, 64)
model.eval(), backbone.eval()
with torch.no_grad():
    assert torch.equal(model.fc(backbone(images)), model(images))
assert safe_open(folder / "whole.safetensors", "pt").metadata()["format"] == "pt"

logits = model(images).detach()
of_timm = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
by_file = timm.create_model(arch, num_classes=dim, checkpoint_path=str(folder / "timm" / "model.safetensors")).eval()
of_hub, loading = AutoModelForImageClassification.from_pretrained(folder / "huggingface", output_loading_info=True)
of_hub.eval()
assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
with torch.no_grad():
    for found in of_timm(images), by_file(images), of_hub(images).logits:
        assert (found - logits).abs().max() < 1e-4 * logits.abs().max(), (found - logits).abs().max()
data = timm.data.resolve_model_data_config(of_timm)
prepare = AutoImageProcessor.from_pretrained(folder / "huggingface")
side = data["input_size"][1]
for ours, theirs in (prepare.image_mean, data["mean"]), (prepare.image_std, data["std"]):
    assert list(ours) == list(theirs), (prepare, data)
photo = Image.effect_noise((3 * side, 2 * side), 80).convert("RGB")
(pixels,) = prepare(photo, return_tensors="pt")["pixel_values"]
resized = torchvision.transforms.functional.resize(photo, round(side / data["crop_pct"]))
ours = torchvision.transforms.functional.to_tensor(torchvision.transforms.functional.center_crop(resized, side))
ours = torchvision.transforms.functional.normalize(ours, data["mean"], data["std"])
assert pixels.shape == ours.shape and (pixels - ours).abs().max() < 0.05, (pixels - ours).abs().max()
for hub in "timm", "huggingface":
    # The code of the model card, as it is printed there.
    lines = (folder / hub / "README.md").read_text().splitlines()
    code = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    photo.save(folder / "photo.jpg")
    names = {}
    exec(code.replace("FOLDER", str(folder / hub)).replace("photo.jpg", str(folder / "photo.jpg")), names)
    assert names["embedding"].shape == (1, dim) and (names["embedding"].norm() - 1).abs() < 1e-5, hub
card = (folder / "huggingface" / "README.md").read_text()
assert "library_name: transformers" in card and "| knn" in card and " % |" in card, card

newest = max((folder / "cifar/checkpoints").iterdir())
tool("to_onnx.py", newest, "--output", folder / "encoder.onnx")
rows = [row for shard in (dataset / "val").glob("*.parquet") for row in pq.read_table(shard).to_pylist()]
pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows])
session = onnxruntime.InferenceSession(folder / "encoder.onnx", providers=["CPUExecutionProvider"])
(found,) = session.run(None, {"pixels": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255})
embedded = pa.ipc.open_file(folder / "val.arrow").read_all().to_pydict()
wanted = dict(zip(embedded["instance_id"], embedded["feature"]))
differences = [np.abs(np.array(wanted[row["instance_id"]]) - own).max() for row, own in zip(rows, found)]
assert len(rows) == len(wanted) > 30 and max(differences) < 1e-4, (len(rows), max(differences))
assert np.abs(found - np.roll(found, 1, axis=0)).max() > 1e-2, "images differ in their embedding"

tool("to_detectron2.py", folder / "whole.safetensors", "--output", folder / "encoder.pkl")
of_detectron2 = pickle.loads((folder / "encoder.pkl").read_bytes())
names = of_detectron2["model"].keys()
stem = {f"stem.conv1.{last}" for last in ("weight", *(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")))}
assert of_detectron2["matching_heuristics"] and {name for name in names if name.startswith("stem.")} == stem, names
assert {"res3.0.shortcut.weight", "res3.0.shortcut.norm.bias", "res5.1.conv2.norm.running_var"} <= names, names
assert len(names) == len(load_file(folder / "backbone.safetensors")), names

table = folder / "table.parquet"
columns = "count(*), count(distinct instance_id), min(len(feature)), max(len(feature)), count(class)"
rows, distinct, shortest, longest, named = duckdb.sql(f"select {columns} from '{table}'").fetchall()[0]
assert rows == distinct == named and shortest == longest == dim, (rows, distinct, shortest, longest, named)
nearest = f"""select b.instance_id from '{table}' a, '{table}' b where a.instance_id = 3
    order by list_inner_product(a.feature::float[], b.feature::float[]) desc limit 1"""
assert duckdb.sql(nearest).fetchall() == [(3,)], "the nearest of a unit vector is itself"
assert pq.read_schema(table).field("feature").type.list_size == dim

projector = folder / "projector"
vectors = [[float(x) for x in line] for line in csv.reader((projector / "tensors.tsv").open(), delimiter="\t")]
names = list(csv.DictReader((projector / "metadata.tsv").open(), delimiter="\t"))
assert len(vectors) == len(names) and all(len(vector) == dim for vector in vectors)
assert all(row["class"] for row in names)
sprite = Image.open(projector / "sprite.png").convert("RGB")
config = (projector / "projector_config.pbtxt").read_text()
assert sprite.width % 32 == 0 and (sprite.width // 32) * (sprite.height // 32) >= len(vectors)
assert len(set(sprite.getdata())) > 100 and "single_image_dim: 32" in config and "tensors.tsv" in config
print(f"checked {rows} rows, {len(vectors)} points")
