//! `export`: features and weights in the formats of other programs. [`ingest::export`](crate::ingest::export)
//! exports images.
//!
//! Feature tables become Parquet, or files for TensorBoard's embedding projector. Weights become one file for
//! torchvision, or a folder for timm or transformers.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::CommandError;
use super::knn::are_one_file;
use super::reports::REPORTS;
use crate::checkpoint::{Checkpoint, CheckpointError, MODEL};
use crate::dataset::Manifest;
use crate::eval::{EvalError, SPRITE_SIDE, check_whole, checkpoint_of_bank, open_bank, sprite};
use crate::feature_table::{ColumnNames, Table, open_table};
use crate::ids::ClassId;
use crate::image::encode_png;
use crate::rng::{Purpose, Stream};
use crate::storage::{Location, PublishMode, StorageError, Upload};

/// Rows read at a time, and rows of a row group.
const ROW_GROUP: usize = 1 << 16;

/// Export for TensorBoard's embedding projector.
#[derive(Clone, Debug)]
pub struct ProjectorJob {
    /// Feature table, or a checkpoint or run for its bank.
    pub table: Location,
    /// Dataset with the images.
    pub dataset: Option<Location>,
    /// Folder to open in TensorBoard.
    pub output: Location,
    /// Maximum number of rows; larger tables are sampled uniformly.
    pub limit: usize,
}

/// Opens the bank of a checkpoint or run, or a table with the format's columns. Other columns are not
/// accepted, as their meaning in the exports would be unclear.
fn open(place: &Location) -> Result<Box<dyn Table>, CommandError> {
    check_whole(place)?;
    Ok(match checkpoint_of_bank(place)? {
        Some(_) => open_bank(place, &ColumnNames::default())?.0,
        None => open_table(place, None)?.0,
    })
}

/// Publishes `tensors.tsv`, `metadata.tsv`, `sprite.png` if there is a dataset, and finally
/// `projector_config.pbtxt`. Returns the number of rows.
///
/// # Errors
/// If the table or the dataset cannot be read or do not belong together, or the store fails.
pub fn export_projector(job: &ProjectorJob) -> Result<usize, CommandError> {
    let table = open(&job.table)?;
    let meta = table.meta();
    let mut rows: Vec<usize> = (0..table.rows()).collect();
    if rows.len() > job.limit {
        Stream::new(0, Purpose::ProjectorSample, 0, 0).shuffle(&mut rows);
        rows.truncate(job.limit);
        rows.sort_unstable();
    }
    let mut tensors = String::new();
    let mut metadata = String::from("instance_id\tclass\n");
    let mut next = rows.iter().copied().peekable();
    for range in table.ranges(ROW_GROUP) {
        let vectors = table.start_read(range.clone()).finish()?;
        while let Some(row) = next.next_if(|row| range.contains(row)) {
            let vector = vectors.rows(row..row + 1)?;
            let numbers: Vec<String> = vector.iter().map(ToString::to_string).collect();
            tensors += &numbers.join("\t");
            tensors.push('\n');
            let class = table.label(row).and_then(|class| meta.classes.get(class.index()));
            let class = class.map_or("", String::as_str).replace(['\t', '\n', '\r'], " ");
            writeln!(metadata, "{}\t{class}", table.id(row)).expect("a String takes everything");
        }
    }
    table.verify()?;
    let name = format!("{}, {}, step {}", meta.split, meta.layer, meta.step);
    let mut config = format!(
        "embeddings {{\n  tensor_name: {}\n  tensor_path: \"tensors.tsv\"\n  metadata_path: \"metadata.tsv\"\n",
        serde_json::Value::from(name)
    );
    let publish =
        |name: &str, contents: Vec<u8>| job.output.join(name).publish(contents, PublishMode::Overwrite);
    if let Some(dataset) = &job.dataset {
        let manifest = Manifest::read(dataset)?;
        let split = manifest.split(dataset, &meta.split)?;
        if !meta.is_of(&split.digest.to_string(), &manifest.dataset_digest.to_string()) {
            let reason = format!("{dataset} is another dataset than that of {}", job.table);
            return Err(CommandError::Data(reason));
        }
        let ids: Vec<_> = rows.iter().map(|&row| table.id(row)).collect();
        let images = sprite(dataset, &manifest, &meta.split, &ids)?;
        let png = encode_png(&images).map_err(|error| EvalError::Options { reason: error.to_string() })?;
        publish("sprite.png", png)?;
        write!(
            config,
            "  sprite {{\n    image_path: \"sprite.png\"\n    single_image_dim: {SPRITE_SIDE}\n    \
             single_image_dim: {SPRITE_SIDE}\n  }}\n"
        )
        .expect("a String takes everything");
    }
    config.push_str("}\n");
    publish("tensors.tsv", tensors.into_bytes())?;
    publish("metadata.tsv", metadata.into_bytes())?;
    publish("projector_config.pbtxt", config.into_bytes())?;
    Ok(rows.len())
}

/// Publishes a feature table, or the bank of a checkpoint or run, with columns `instance_id`, `feature` (a
/// list of fixed length), `label`, `class` and `updated_step`. Returns the number of rows.
///
/// # Errors
/// If the table cannot be read, or the store fails.
pub fn export_parquet(place: &Location, output: &Location) -> Result<usize, CommandError> {
    if are_one_file(place, output) {
        return Err(CommandError::Usage(format!(
            "--output {output}: that is the table to read; name another file"
        )));
    }
    let table = open(place)?;
    let failed = |source: ParquetError| StorageError::Failed {
        operation: "write",
        location: output.to_string(),
        local: output.local_path().is_some(),
        source: Box::new(source),
    };
    let dim = table.meta().dim as i32;
    let item = Arc::new(Field::new("item", DataType::Float32, false));
    let schema = Arc::new(Schema::new_with_metadata(
        vec![
            Field::new("instance_id", DataType::Int64, false),
            Field::new("feature", DataType::FixedSizeList(Arc::clone(&item), dim), false),
            Field::new("label", DataType::Int64, true),
            Field::new("class", DataType::Utf8, true),
            Field::new("updated_step", DataType::Int64, true),
        ],
        table.meta().to_metadata(),
    ));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_column_dictionary_enabled("feature.list.element".into(), false)
        .build();
    let upload = Upload::start(output)?;
    let mut writer = ArrowWriter::try_new(upload, Arc::clone(&schema), Some(properties)).map_err(failed)?;
    let name = |class: ClassId| table.meta().classes.get(class.index()).map(String::as_str);
    for rows in table.ranges(ROW_GROUP) {
        let vectors = table.start_read(rows.clone()).finish()?;
        let values = Float32Array::from(vectors.rows(rows.clone())?.into_owned());
        let feature = FixedSizeListArray::new(Arc::clone(&item), dim, Arc::new(values), None);
        let labels: Vec<Option<ClassId>> = rows.clone().map(|row| table.label(row)).collect();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| table.id(row).to_stored()))),
            Arc::new(feature),
            Arc::new(Int64Array::from_iter(labels.iter().map(|label| label.map(|class| i64::from(class.0))))),
            Arc::new(StringArray::from_iter(labels.iter().map(|label| label.and_then(name)))),
            Arc::new(Int64Array::from_iter(
                table.updated_steps(rows)?.into_iter().map(|step| step.map(|step| step as i64)),
            )),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("the columns are the schema's");
        writer.write(&batch).and_then(|()| writer.flush()).map_err(failed)?;
    }
    table.verify()?;
    writer.into_inner().map_err(failed)?.finish()?;
    Ok(table.rows())
}

/// Publishes a checkpoint's weights as one safetensors file. Returns the number of tensors.
///
/// Without the projection, the file has only the backbone, for a torchvision model whose last layer is
/// `torch.nn.Identity()`.
///
/// # Errors
/// If the checkpoint is damaged, or the store fails.
pub fn export_torchvision(
    folder: &Location,
    output: &Location,
    with_projection: bool,
) -> Result<usize, CommandError> {
    let checkpoint = Checkpoint::open(folder)?;
    let arch = checkpoint.state()?.encoder["arch"].as_str().unwrap_or_default().to_owned();
    let projection = if arch.starts_with("resnet") { "fc." } else { "classifier.6." };
    let kept = |name: &str| (with_projection || !name.starts_with(projection)).then(|| name.to_owned());
    let (tensors, file) = weights(&checkpoint, &arch, &kept, false)?;
    output.publish(file, PublishMode::Overwrite)?;
    Ok(tensors)
}

/// Renames a checkpoint's tensors, without those that get no name. Returns their count and a safetensors file.
///
/// `counts` adds the number of batches seen by each batch norm, 0, for libraries that require it.
///
/// # Errors
/// If the checkpoint is damaged, or the store fails.
fn weights(
    checkpoint: &Checkpoint,
    arch: &str,
    renamed: &dyn Fn(&str) -> Option<String>,
    counts: bool,
) -> Result<(usize, Vec<u8>), CommandError> {
    let bytes = checkpoint.read(MODEL)?;
    let damaged = || CheckpointError::Damaged { file: checkpoint.folder().join(MODEL).to_string() };
    let tensors = SafeTensors::deserialize(&bytes).map_err(|_| damaged())?;
    let mut kept: Vec<_> =
        tensors.tensors().into_iter().filter_map(|(name, tensor)| Some((renamed(&name)?, tensor))).collect();
    let count = kept.len();
    if counts {
        let of_norm = |(name, _): &(String, _)| {
            Some(name.strip_suffix("running_mean")?.to_owned() + "num_batches_tracked")
        };
        let names: Vec<String> = kept.iter().filter_map(of_norm).collect();
        let none = TensorView::new(Dtype::I64, Vec::new(), &[0; 8]).map_err(|_| damaged())?;
        kept.extend(names.into_iter().map(|name| (name, none.clone())));
    }
    // PyTorch's tools require the first entry.
    let about = HashMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("arch".to_owned(), arch.to_owned()),
        ("step".to_owned(), checkpoint.manifest().step.to_string()),
    ]);
    let mut file = safetensors::serialize(kept, Some(about)).map_err(|_| damaged())?;
    sort_metadata(&mut file).ok_or_else(damaged)?;
    Ok((count, file))
}

/// Sorts the metadata of a safetensors file by key, as hash maps are unordered and equal weights must give equal bytes.
fn sort_metadata(file: &mut [u8]) -> Option<()> {
    let (length, rest) = file.split_first_chunk_mut::<8>()?;
    let header = rest.get_mut(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let mut entries: Map<String, Value> = serde_json::from_slice(header).ok()?;
    entries.get_mut("__metadata__")?.as_object_mut()?.sort_keys();
    // Pad with spaces to the old length.
    let text = serde_json::to_vec(&entries).ok()?;
    header.get_mut(..text.len())?.copy_from_slice(&text);
    header[text.len()..].fill(b' ');
    Some(())
}

/// Library whose names and configuration the folder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hub {
    /// `timm.create_model("local-dir:FOLDER")`
    Timm,
    /// `transformers.AutoModelForImageClassification.from_pretrained("FOLDER")`
    HuggingFace,
}

/// Publishes a checkpoint's encoder as a folder. Returns the number of tensors. The model's logits are the
/// embedding before normalisation.
///
/// # Errors
/// If neither library has the network, the folder is not empty, the checkpoint is damaged, or the store fails.
///
/// # Source
/// timm's `ResNet` has torchvision's names; transformers' names are those of `ResNetForImageClassification`.
pub fn export_hub(folder: &Location, output: &Location, hub: Hub) -> Result<usize, CommandError> {
    let checkpoint = Checkpoint::open(folder)?;
    let encoder = checkpoint.state()?.encoder;
    let arch = encoder["arch"].as_str().unwrap_or_default();
    let Some(network) = Network::named(arch) else {
        return Err(CommandError::Data(format!(
            "{folder}: neither timm nor transformers has the network {arch}; `export torchvision` and \
             jobs/tools/cifar_resnet.py load it in PyTorch"
        )));
    };
    // The library would load another export's files too, and a README.md may be the user's.
    if let Some(file) = output.list()?.first() {
        let reason =
            format!("--output {output}: it holds `{}`; give a folder that is new or empty", file.name);
        return Err(CommandError::Usage(reason));
    }
    let name = |name: &str| match hub {
        Hub::Timm => Some(name.to_owned()),
        Hub::HuggingFace => name_in_transformers(name),
    };
    let (tensors, file) = weights(&checkpoint, arch, &name, hub == Hub::HuggingFace)?;
    let write = |name: &str, text: Vec<u8>| output.join(name).publish(text, PublishMode::Overwrite);
    write(MODEL, file)?;
    let card = card(&checkpoint, hub, &encoder, &scores(&checkpoint)?);
    write("README.md", card.into_bytes())?;
    if hub == Hub::HuggingFace {
        write("preprocessor_config.json", serde_json::to_vec_pretty(&preprocessing(&encoder))?)?;
    }
    // Written last, as nothing loads the folder without it.
    let config = match hub {
        Hub::Timm => network.timm(&encoder),
        Hub::HuggingFace => network.transformers(&encoder),
    };
    write("config.json", serde_json::to_vec_pretty(&config)?)?;
    Ok(tensors)
}

/// Residual network with a stem for large images.
struct Network {
    arch: &'static str,
    /// Number of blocks of each stage.
    depths: [u32; 4],
    /// Width of the last stage.
    width: u32,
}

impl Network {
    const ALL: [Self; 3] = [
        Self { arch: "resnet18", depths: [2, 2, 2, 2], width: 512 },
        Self { arch: "resnet34", depths: [3, 4, 6, 3], width: 512 },
        Self { arch: "resnet50", depths: [3, 4, 6, 3], width: 2048 },
    ];

    fn named(arch: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|network| network.arch == arch)
    }

    /// Returns timm's `config.json`.
    fn timm(&self, encoder: &Value) -> Value {
        let side = &encoder["image_size"];
        let normalisation = &encoder["normalisation"];
        json!({
            "architecture": self.arch,
            "num_classes": encoder["dim"],
            "num_features": self.width,
            "pretrained_cfg": {
                "input_size": [3, side, side],
                "fixed_input_size": false,
                "interpolation": "bilinear",
                "crop_pct": crop_share(encoder),
                "crop_mode": "center",
                "mean": normalisation["mean"],
                "std": normalisation["std"],
                "num_classes": encoder["dim"],
                "first_conv": "conv1",
                "classifier": "fc",
            },
        })
    }

    /// Returns transformers' `config.json`.
    fn transformers(&self, encoder: &Value) -> Value {
        let dim = encoder["dim"].as_u64().unwrap_or_default();
        let labels: Map<_, _> =
            (0..dim).map(|at| (at.to_string(), format!("embedding {at}").into())).collect();
        let ids: Map<_, _> = (0..dim).map(|at| (format!("embedding {at}"), at.into())).collect();
        json!({
            "architectures": ["ResNetForImageClassification"],
            "model_type": "resnet",
            "num_channels": 3,
            "embedding_size": 64,
            "hidden_sizes": [self.width / 8, self.width / 4, self.width / 2, self.width],
            "depths": self.depths,
            "layer_type": if self.width > 512 { "bottleneck" } else { "basic" },
            "hidden_act": "relu",
            "downsample_in_first_stage": false,
            "downsample_in_bottleneck": false,
            "id2label": labels,
            "label2id": ids,
        })
    }
}

/// Returns a tensor's name in transformers' `ResNetForImageClassification`.
fn name_in_transformers(name: &str) -> Option<String> {
    let embedder = "resnet.embedder.embedder";
    let parts: Vec<&str> = name.split('.').collect();
    Some(match parts[..] {
        ["conv1", last] => format!("{embedder}.convolution.{last}"),
        ["bn1", last] => format!("{embedder}.normalization.{last}"),
        ["fc", last] => format!("classifier.1.{last}"),
        [stage, block, ref inner @ .., last] => {
            let stage = stage.strip_prefix("layer")?.parse::<u32>().ok()?.checked_sub(1)?;
            let inner = match *inner {
                ["downsample", "0"] => "shortcut.convolution".to_owned(),
                ["downsample", "1"] => "shortcut.normalization".to_owned(),
                [part] => {
                    let (number, kind) = match part.strip_prefix("conv") {
                        Some(number) => (number, "convolution"),
                        None => (part.strip_prefix("bn")?, "normalization"),
                    };
                    format!("layer.{}.{kind}", number.parse::<u32>().ok()?.checked_sub(1)?)
                }
                _ => return None,
            };
            format!("resnet.encoder.stages.{stage}.layers.{block}.{inner}.{last}")
        }
        _ => return None,
    })
}

/// Returns the evaluation crop's side as a fraction of the resized shorter side.
fn crop_share(encoder: &Value) -> f64 {
    let side = |key: &str| encoder[key].as_f64().unwrap_or(1.0);
    side("image_size") / side("evaluation_resize").max(1.0)
}

/// Describes the image preprocessing that a model of a checkpoint's exported weights needs.
///
/// # Errors
/// If the checkpoint is damaged.
pub fn preprocessing_of(folder: &Location) -> Result<String, CommandError> {
    Ok(format!("images: {}", preprocessing_words(&Checkpoint::open(folder)?.state()?.encoder)))
}

fn preprocessing_words(encoder: &Value) -> String {
    let channels = |key: &str| encoder["normalisation"][key].to_string().replace(',', ", ");
    format!(
        "resized to {} pixels along the shorter side (bilinear, antialiased), the centre of {} pixels, values \
         from 0 to 1, minus the mean {} and divided by the deviation {}, for red, green and blue",
        encoder["evaluation_resize"],
        encoder["image_size"],
        channels("mean"),
        channels("std")
    )
}

/// Returns transformers' `preprocessor_config.json`: resize, centre crop and normalisation as in the evaluation.
fn preprocessing(encoder: &Value) -> Value {
    const BILINEAR: u32 = 2;
    let side = &encoder["image_size"];
    json!({
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": {"shortest_edge": encoder["evaluation_resize"]},
        "resample": BILINEAR,
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": encoder["normalisation"]["mean"],
        "image_std": encoder["normalisation"]["std"],
    })
}

/// Describes the published reports of the checkpoint's weights, one line of the card each.
fn scores(checkpoint: &Checkpoint) -> Result<Vec<String>, CommandError> {
    let Some(run) = checkpoint.folder().folder().and_then(|checkpoints| checkpoints.folder()) else {
        return Ok(Vec::new());
    };
    let reports = run.join(REPORTS);
    let digest = checkpoint.weights_digest();
    let mut lines = Vec::new();
    for file in reports.list()?.into_iter().filter(|file| file.name.ends_with(".json")) {
        let text = reports.join(&file.name).read()?;
        let Ok(report) = serde_json::from_slice::<Value>(&text) else { continue };
        let (Some(top1), true) = (report["top1"].as_f64(), report["weights"] == digest.as_str()) else {
            continue;
        };
        let digest = report["dataset_digest"].as_str().unwrap_or_default();
        let dataset = match report["dataset"].as_str() {
            Some(name) => format!("{name} ({digest:.12})"),
            None => format!("{digest:.12}"),
        };
        let split = report["split"].as_str().unwrap_or_default();
        lines.push(format!("| {} | {split} | {dataset} | {:.1} % |", file.name, 100.0 * top1));
    }
    Ok(lines)
}

/// Returns the model card.
fn card(checkpoint: &Checkpoint, hub: Hub, encoder: &Value, scores: &[String]) -> String {
    let manifest = checkpoint.manifest();
    let (library, load) = match hub {
        Hub::Timm => (
            "timm",
            "import timm, torch\n    from PIL import Image\n    \
             model = timm.create_model(\"local-dir:FOLDER\", pretrained=True).eval()\n    \
             prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n    \
             pixels = prepare(Image.open(\"photo.jpg\").convert(\"RGB\"))[None]",
        ),
        Hub::HuggingFace => (
            "transformers",
            "import torch\n    from PIL import Image\n    \
             from transformers import AutoImageProcessor, AutoModelForImageClassification\n    \
             model = AutoModelForImageClassification.from_pretrained(\"FOLDER\")\n    \
             prepare = AutoImageProcessor.from_pretrained(\"FOLDER\")\n    \
             pixels = prepare(Image.open(\"photo.jpg\").convert(\"RGB\"), return_tensors=\"pt\").pixel_values",
        ),
    };
    let logits = if hub == Hub::Timm { "model(pixels)" } else { "model(pixels).logits" };
    let text = |key: &str| encoder[key].to_string().replace('"', "");
    let mut card = format!(
        "---\nlibrary_name: {library}\npipeline_tag: image-feature-extraction\ntags: [image-feature-extraction, \
         instance-discrimination]\n---\n\n# {} trained by instance discrimination\n\n    {load}\n    embedding = \
         torch.nn.functional.normalize({logits})    # [images, {}]\n\nMade by instdisc {} after {} steps, \
         without labels ([Wu et al., CVPR 2018](https://arxiv.org/abs/1805.01978)).\n\n- images: {}\n- dataset: \
         `{}`\n- weights: `{}`\n",
        text("arch"),
        text("dim"),
        env!("CARGO_PKG_VERSION"),
        manifest.step,
        preprocessing_words(encoder),
        manifest.trained_on.dataset_digest,
        checkpoint.weights_digest(),
    );
    if !scores.is_empty() {
        let _ = write!(
            card,
            "\n| report | split | dataset | top-1 |\n|---|---|---|---|\n{}\n",
            scores.join("\n")
        );
    }
    card
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_transformers_and_no_other_tensor_is_taken() {
        let names = [
            ("conv1.weight", "resnet.embedder.embedder.convolution.weight"),
            ("bn1.running_var", "resnet.embedder.embedder.normalization.running_var"),
            ("layer1.0.conv1.weight", "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"),
            ("layer4.2.bn3.bias", "resnet.encoder.stages.3.layers.2.layer.2.normalization.bias"),
            ("layer2.0.downsample.0.weight", "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"),
            (
                "layer2.0.downsample.1.weight",
                "resnet.encoder.stages.1.layers.0.shortcut.normalization.weight",
            ),
            ("fc.bias", "classifier.1.bias"),
        ];
        for (ours, theirs) in names {
            assert_eq!(name_in_transformers(ours).as_deref(), Some(theirs));
        }
        for other in ["head.weight", "layer0.0.conv1.weight", "layer1.0.pool.weight", "x", ""] {
            assert_eq!(name_in_transformers(other), None, "{other}");
        }
    }
}
