//! What goes wrong gives one clear error, its exit code, and leaves nothing half-published.

use std::path::Path;

use super::support::{contents, dataset, images, ingest, instdisc, scratch, skip};

const WRONG_DATA: i32 = 65;
const IO: i32 = 74;
const CONFIG: i32 = 78;

fn no_dataset_at(dest: &Path) {
    assert!(!dest.join("manifest.json").exists(), "a manifest was published");
}

#[test]
fn an_empty_folder_is_no_source() {
    let dir = scratch();
    let (source, dest) = (dir.path().join("empty"), dir.path().join("dest"));
    std::fs::create_dir(&source).expect("a folder");
    let error = ingest("", &source, &dest).fails(WRONG_DATA);
    assert!(error.contains("empty: there is no image"), "{error}");
    no_dataset_at(&dest);
}

#[test]
fn a_destination_with_another_dataset_is_left_alone() {
    let dir = scratch();
    let dest = dir.path().join("dest");
    ingest("--split train", images().join("val"), &dest).ok();
    let before = contents(&dest);
    let error = ingest("--split train", images().join("train"), &dest).fails(WRONG_DATA);
    assert!(error.contains("already holds another dataset"), "{error}");
    assert_eq!(contents(&dest), before);
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let dir = scratch();
    let dest = dir.path().join("dest");
    for source in ["/nonexistent/images", "/nonexistent/images.tar", "/nonexistent/{a,b}.tar"] {
        let error = ingest("", source, &dest).fails(WRONG_DATA);
        assert!(error.contains("/nonexistent/") && error.contains("no such source"), "{error}");
    }
    for option in ["--labels", "--classes"] {
        let call = ingest("", images(), &dest).arg(option, dir.path().join("absent.txt"));
        let error = call.fails(CONFIG);
        assert!(error.contains(option) && error.contains("absent.txt: the file cannot be read"), "{error}");
    }
    no_dataset_at(&dest);
}

#[test]
fn a_table_that_is_not_there_is_named() {
    for (command, [first, second]) in
        [("knn", ["--bank", "--queries"]), ("export parquet", ["--table", "--output"])]
    {
        let call =
            instdisc(command).arg(first, "/nonexistent/one.arrow").arg(second, "/nonexistent/two.parquet");
        let error = call.fails(WRONG_DATA);
        assert!(error.contains("/nonexistent/one.arrow: no feature table is there"), "{error}");
    }
    // Nothing is written over what is read, or over a file of another kind.
    let dir = scratch();
    let table = dir.path().join("table.parquet");
    std::fs::write(&table, b"PAR1").expect("a file");
    let own = instdisc("export parquet").arg("--table", &table).arg("--output", &table);
    assert!(own.fails(2).contains("that is the table to read"));
    let manifest =
        instdisc("export parquet").arg("--table", &table).arg("--output", dataset().join("manifest.json"));
    assert!(manifest.fails(2).contains("end its name in `.parquet`"));
    let call = instdisc("export projector --table /nonexistent/one.arrow").arg("--output", "/nonexistent/x");
    assert!(call.fails(WRONG_DATA).contains("/nonexistent/one.arrow: no feature table is there"));
    let folder = instdisc("export projector --output /nonexistent/x").arg("--table", dataset());
    assert!(folder.fails(WRONG_DATA).contains("it is a folder"));
}

#[cfg(feature = "torch")]
#[test]
fn a_table_or_a_split_that_is_not_there_is_named_by_what_learns_too() {
    let call = instdisc("linear --train /nonexistent/one.arrow --test /nonexistent/two.arrow");
    assert!(call.fails(WRONG_DATA).contains("/nonexistent/one.arrow: no feature table is there"));
    let dir = scratch();
    let (data, unlabelled) = (dir.path().join("data"), dir.path().join("unlabelled"));
    ingest("--split train", images().join("train"), &data).ok();
    ingest("--unlabelled", images(), &unlabelled).ok();
    let run = dir.path().join("run");
    super::support::train(&data, &run, "--epochs 1 --no-monitor").ok();
    for (data, reason) in [(&data, "val"), (&unlabelled, "the dataset has no labels")] {
        let call = instdisc("finetune --epochs 1 --device cpu").arg("--checkpoint", &run);
        let error = call.arg("--dataset", data).arg("--run", dir.path().join("tuned")).fails(CONFIG);
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_destination_that_cannot_be_written_is_named() {
    let dir = scratch();
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("a file");
    let error = ingest("", images(), file.join("dataset")).fails(IO);
    assert!(error.contains("file/dataset"), "{error}");
}

/// A file system in memory for the time of a test; only root can mount one.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(folder: &'a Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(folder).expect("a folder");
        let mut mount = std::process::Command::new("mount");
        let output = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(folder).output().ok()?;
        output.status.success().then_some(Self(folder))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn a_full_destination_is_an_io_error_and_a_rerun_goes_on() {
    let dir = scratch();
    let disk = dir.path().join("disk");
    let Some(mounted) = Mounted::new(&disk, "size=64k") else {
        skip("a_full_destination_is_an_io_error_and_a_rerun_goes_on", "tmpfs cannot be mounted here");
        return;
    };
    let dest = disk.join("dataset");
    let ingest = || ingest("--row-group 16", images(), &dest);
    let error = ingest().fails(IO);
    assert!(error.contains("dataset") && error.contains("No space left"), "{error}");
    no_dataset_at(&dest);
    let mut remount = std::process::Command::new("mount");
    assert!(remount.args(["-o", "remount,size=64m"]).arg(mounted.0).status().expect("mount").success());
    ingest().ok();
    assert_eq!(contents(&dest), contents(dataset()));
}

#[test]
fn a_read_only_destination_is_an_io_error() {
    let dir = scratch();
    let disk = dir.path().join("disk");
    let Some(_mounted) = Mounted::new(&disk, "ro") else {
        skip("a_read_only_destination_is_an_io_error", "tmpfs cannot be mounted here");
        return;
    };
    let error = ingest("", images(), disk.join("dataset")).fails(IO);
    assert!(error.contains("Read-only file system"), "{error}");
}

#[test]
fn a_folder_that_holds_nothing_of_ours_is_said_so() {
    let error = instdisc("inspect").arg("", images()).fails(WRONG_DATA);
    assert!(error.contains("neither a dataset, a run, a checkpoint nor a feature table"), "{error}");
}

#[test]
fn a_quality_without_a_size_is_refused() {
    let (shown, output) = instdisc("ingest --source a --dest b --quality 80").output();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("--max-side <N>|--short-side <N>"), "{shown}");
    let smaller = instdisc("ingest --dest b --quality 80 --max-side 64 --short-side 32");
    let error = smaller.arg("--source", "/nonexistent/images").fails(WRONG_DATA);
    assert!(error.contains("/nonexistent/images"), "{error}");
}

#[test]
fn a_wrong_flag_is_a_usage_error() {
    let output = instdisc("ingest --sauce x").command().output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--source"));
}

#[cfg(feature = "torch")]
mod training {
    use super::*;
    use crate::support::{checkpoint, checkpoint_steps, copy, damage, tensors, train, trained};

    const OTHER: i32 = 1;

    #[test]
    fn a_corrupt_shard_is_named_with_its_row_group() {
        let dir = scratch();
        let (data, run) = (dir.path().join("data"), dir.path().join("run"));
        copy(dataset(), &data);
        let shard = data.join("train/shard-00000.parquet");
        damage(&shard);
        let encoded = dir.path().join("encoded");
        let error = train(&data, &encoded, "--epochs 1 --bank-init encode").fails(WRONG_DATA);
        assert!(error.contains("train/shard-00000.parquet row group "), "{error}");
        assert!(!encoded.join("checkpoints").exists(), "the bank was not made");
        let error = train(&data, &run, "--epochs 1 --bank-init uniform").fails(WRONG_DATA);
        assert!(error.contains("train/shard-00000.parquet row group "), "{error}");
        assert_eq!(checkpoint_steps(&run), (vec![0], false));
        let error = instdisc("inspect --verify").arg("", &data).fails(WRONG_DATA);
        assert!(error.contains("train/shard-00000.parquet"), "{error}");
    }

    #[test]
    fn a_run_on_another_dataset_is_refused() {
        let dir = scratch();
        let data = dir.path().join("data");
        ingest("--split train", images().join("val"), &data).ok();
        let run = trained(&dir, "--epochs 1");
        let before = contents(&run);
        let error = train(&data, &run, "--epochs 2").fails(WRONG_DATA);
        assert!(error.contains("step-00000008 is of the dataset"), "{error}");
        let named = format!("not of --dataset {} (", data.display());
        assert!(error.contains(&named), "{error}");
        for words in ["knn --split train --feature projection", "linear --split train"] {
            let error = instdisc(words).arg("--run", &run).arg("--dataset", &data).fails(WRONG_DATA);
            assert!(error.contains("was trained on the dataset"), "{error}");
            assert!(error.contains(&format!("not on --dataset {} (", data.display())), "{error}");
        }
        assert_eq!(contents(&run), before);
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_checkpoint() {
        let dir = scratch();
        let run = dir.path().join("run");
        let error = train(dataset(), &run, "--epochs 3 --lr 1e38").fails(OTHER);
        assert!(error.contains("step ") && error.contains("is NaN") || error.contains("is inf"), "{error}");
        assert_eq!(checkpoint_steps(&run), (vec![0], false));
        instdisc("inspect --verify").arg("", checkpoint(&run, 0)).ok();
    }

    #[test]
    fn a_wrong_key_is_named_with_the_right_one() {
        let dir = scratch();
        let (file, run) = (dir.path().join("run.toml"), dir.path().join("run"));
        std::fs::write(&file, "temprature = 0.1\n").expect("a file");
        let error = train(dataset(), &run, "").arg("--config", &file).fails(CONFIG);
        assert!(error.contains(r#"unknown key "temprature"; did you mean "temperature"?"#), "{error}");
        assert!(!run.exists());
    }

    #[test]
    fn a_configuration_that_is_not_there_is_named() {
        let dir = scratch();
        let run = dir.path().join("run");
        let absent = dir.path().join("absent");
        for option in ["--config", "--init"] {
            let error = train(dataset(), &run, "").arg(option, &absent).fails(CONFIG);
            assert!(error.contains(option) && error.contains("absent: the file cannot be read"), "{error}");
        }
        assert!(!run.exists());
    }

    #[test]
    fn weights_that_are_quantised_or_not_finite_are_said_as_such() {
        let dir = scratch();
        let (run, file) = (dir.path().join("run"), dir.path().join("begin.safetensors"));
        for (dtype, bytes, reason) in [
            ("I8", vec![1, 2, 3, 4], "type I8, expected F16, BF16, F32 or F64"),
            ("F32", f32::NAN.to_le_bytes().to_vec(), "`conv1.weight` has a number that is not finite"),
        ] {
            let shape = if dtype == "I8" { 4 } else { 1 };
            let header =
                format!(r#"{{"conv1.weight":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[0,4]}}}}"#);
            let length = (header.len() as u64).to_le_bytes();
            std::fs::write(&file, [&length[..], header.as_bytes(), &bytes].concat()).expect("a file");
            let error = train(dataset(), &run, "").arg("--init", &file).fails(WRONG_DATA);
            assert!(error.contains("begin.safetensors: its weights cannot be used"), "{error}");
            assert!(error.contains(reason) && !error.contains("--arch"), "{error}");
        }
    }

    /// A network of zeros gives all images one feature, and a variance below 0 gives none a number.
    #[test]
    fn weights_with_which_no_image_can_be_told_from_another_begin_no_run() {
        let dir = scratch();
        let (run, file) = (dir.path().join("run"), dir.path().join("begin.safetensors"));
        let from = dir.path().join("from");
        train(dataset(), &from, "--epochs 1 --no-monitor").ok();
        let weights = checkpoint(&from, 8).join("model.safetensors");
        let original = std::fs::read(weights).expect("the weights");
        let found = tensors(&original);
        let (mut zeros, mut negative) = (original.clone(), original);
        for (name, range, _) in found {
            zeros[range.clone()].fill(0);
            if name == "bn1.running_var" {
                negative[range][..4].copy_from_slice(&(-0.5_f32).to_le_bytes());
            }
        }
        for (bytes, reason) in [
            (zeros, "two different images have exactly the same feature"),
            (negative, "tensor `bn1.running_var` has a number below 0"),
        ] {
            std::fs::write(&file, bytes).expect("a file");
            for bank in ["encode", "uniform"] {
                let call = train(dataset(), &run, &format!("--epochs 1 --bank-init {bank}"));
                let error = call.arg("--init", &file).fails(WRONG_DATA);
                assert!(error.contains("begin.safetensors: its weights cannot be used"), "{error}");
                assert!(error.contains(reason), "{error}");
            }
        }
        assert!(!run.join("checkpoints").exists());
        // Of one number, a unit vector is one of two: equal features tell nothing.
        let of_one = |run: &Path| {
            let call =
                instdisc("train --arch resnet20-cifar --image-size 16 --dim 1 --batch-size 15 --epochs 1");
            call.of_run(run).word("--device=cpu").word("--no-monitor")
        };
        of_one(&dir.path().join("one")).ok();
        let newest = checkpoint(&dir.path().join("one"), 8).join("model.safetensors");
        of_one(&run).arg("--init", &newest).ok();
    }

    #[test]
    fn wrong_toml_is_shown_with_its_line_and_the_place_in_it() {
        let dir = scratch();
        let (file, run) = (dir.path().join("run.toml"), dir.path().join("run"));
        std::fs::write(&file, "lr = 0.1\nbatch_size = 6 4\n").expect("a file");
        let (_, output) = train(dataset(), &run, "").arg("--config", &file).output();
        assert_eq!(output.status.code(), Some(CONFIG));
        let stderr = String::from_utf8(output.stderr).expect("text");
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with("error: ") && lines[0].contains("run.toml: "), "{stderr}");
        assert!(lines.contains(&"2 | batch_size = 6 4"), "{stderr}");
        assert!(lines.iter().any(|line| line.trim_start_matches([' ', '|']).starts_with('^')), "{stderr}");
    }

    #[test]
    fn a_run_that_is_not_there_is_named() {
        let absent = Path::new("/nonexistent/run");
        let calls = [("knn", "--run"), ("linear", "--run"), ("embed --output x", "--checkpoint")];
        for (words, option) in calls {
            let error = instdisc(words).arg(option, absent).arg("--dataset", dataset()).fails(WRONG_DATA);
            assert!(error.contains("/nonexistent/run: no checkpoint is there, nor a run"), "{error}");
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_a_configuration_error() {
        let dir = scratch();
        let call = instdisc("train --device cuda:99").arg("--dataset", dataset());
        let error = call.arg("--run", dir.path().join("run")).fails(CONFIG);
        assert!(error.contains("cuda:99 cannot be used"), "{error}");
    }
}
