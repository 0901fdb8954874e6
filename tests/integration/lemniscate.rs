//! A checkpoint of lemniscate.pytorch, converted and evaluated.

use std::path::Path;

use super::support::{dataset, images, instdisc, python, python_fails, scratch};

#[test]
fn a_checkpoint_of_lemniscate_keeps_its_rows_and_its_network() {
    let test = "a_checkpoint_of_lemniscate_keeps_its_rows_and_its_network";
    let converter = "jobs/tools/lemniscate_to_checkpoint.py";
    let dir = scratch();
    let [file, weights] = ["lemniscate.pth.tar", "weights.safetensors"].map(|name| dir.path().join(name));
    let train = images().join("train");
    let made = [train.as_path(), &file, &weights];
    let Some(_) = python(test, "tests/python/make_lemniscate.py", &made) else { return };
    let run = dir.path().join("run");
    let checkpoint = run.join("checkpoints/step-00001000");
    let flags = ["--arch", "resnet18", "--image-size", "32", "--output"].map(Path::new);
    let mut arguments = vec![file.as_path(), Path::new("--dataset"), dataset()];
    arguments.extend(flags);
    arguments.push(&checkpoint);

    // Rows of other images.
    let mut wrong = arguments.clone();
    wrong.extend(["--split", "val"].map(Path::new));
    let error = python_fails(test, converter, &wrong, 1).expect("there is a Python");
    assert!(error.contains("120 rows") && error.contains("40 images"), "{error}");
    assert!(!run.exists());

    python(test, converter, &arguments).expect("there is a Python");
    let error = python_fails(test, converter, &arguments, 2).expect("there is a Python");
    assert!(error.contains("is a checkpoint already"), "{error}");
    let read = |path: &Path| std::fs::read(path).expect("readable");
    assert!(read(&checkpoint.join("model.safetensors")) == read(&weights));
    let bank = checkpoint.join("bank.arrow");
    let knn = instdisc("knn --leave-one-out --k 5").arg("--bank", &bank).arg("--queries", &bank);
    assert_eq!(knn.json()["top1"], 1.0);
    let inspected = instdisc("inspect --print lines").arg("", &checkpoint).ok();
    assert!(inspected.contains("bank.never_updated                 120"), "{inspected}");
    let evaluated = instdisc("knn --k 5 --split val").arg("--run", &run).arg("--dataset", dataset()).json();
    assert_eq!((evaluated["queries"].as_u64(), evaluated["step"].as_u64()), (Some(40), Some(1000)));
}
