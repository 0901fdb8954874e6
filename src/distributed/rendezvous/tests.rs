use super::*;
use crate::failure::Failure;

fn found(flags: &RendezvousFlags, variables: &[(&str, &str)]) -> Result<Rendezvous, DistributedError> {
    Rendezvous::find(flags, &|name| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    })
}

fn of(variables: &[(&str, &str)]) -> Result<Rendezvous, DistributedError> {
    found(&RendezvousFlags::default(), variables)
}

fn flags(rank: Option<usize>, world_size: Option<usize>, master: Option<&str>) -> RendezvousFlags {
    RendezvousFlags { rank, world_size, master: master.map(ToOwned::to_owned) }
}

/// Returns rank, world, local rank and meeting point.
fn place(rendezvous: &Rendezvous) -> (usize, usize, usize, Option<(&str, u16)>) {
    let meeting = rendezvous.meeting.as_ref().map(|meeting| (meeting.host.as_str(), meeting.port));
    (rendezvous.rank(), rendezvous.world(), rendezvous.local_rank(), meeting)
}

const TORCHRUN: [(&str, &str); 5] = [
    ("RANK", "3"),
    ("WORLD_SIZE", "4"),
    ("LOCAL_RANK", "1"),
    ("MASTER_ADDR", "host"),
    ("MASTER_PORT", "29500"),
];

const STEP: [(&str, &str); 7] = [
    ("SLURM_JOB_ID", "40123"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "5"),
    ("SLURM_NTASKS", "8"),
    ("SLURM_LOCALID", "1"),
    ("SLURM_NNODES", "2"),
    ("SLURM_JOB_NODELIST", "gpu[07-08]"),
];

fn with<'a>(base: &[(&'a str, &'a str)], name: &'a str, value: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    let kept = base.iter().copied().filter(|(known, _)| *known != name);
    kept.chain(value.map(|value| (name, value))).collect()
}

#[test]
fn a_process_without_variables_is_alone() {
    assert_eq!(place(&of(&[]).expect("alone")), (0, 1, 0, None));
    assert_eq!(place(&of(&[("RANK", ""), ("WORLD_SIZE", "")]).expect("alone")), (0, 1, 0, None));
}

#[test]
fn torchruns_variables_are_taken() {
    let found = of(&TORCHRUN).expect("complete");
    assert_eq!(place(&found), (3, 4, 1, Some(("host", 29500))));
    assert!(found.meeting.expect("several").serve);
}

#[test]
fn the_store_of_torchruns_agent_is_joined_and_not_opened() {
    let variables = with(&TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE", Some("True"));
    let first = of(&with(&variables, "TORCHELASTIC_RESTART_COUNT", Some("0"))).expect("complete");
    let second = of(&with(&variables, "TORCHELASTIC_RESTART_COUNT", Some("1"))).expect("complete");
    let (first, second) = (first.meeting.expect("several"), second.meeting.expect("several"));
    assert!(!first.serve && !second.serve);
    assert_ne!(first.prefix, second.prefix, "a restarted worker does not meet its former peers' keys");
}

#[test]
fn a_missing_variable_of_torchrun_is_named() {
    for name in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"] {
        let error = of(&with(&TORCHRUN, name, None)).expect_err("incomplete");
        assert!(error.to_string().starts_with(&format!("{name} is not set, though ")), "{error}");
        assert_eq!(error.failure(), Failure::Config);
    }
}

#[test]
fn contradictory_variables_are_refused() {
    let cases = [
        ("RANK", "4", "RANK=4 with WORLD_SIZE=4"),
        ("RANK", "x", "RANK=\"x\" is not a number"),
        ("WORLD_SIZE", "0", "WORLD_SIZE=0"),
        ("MASTER_PORT", "70000", "MASTER_PORT=70000 is not a port"),
        ("LOCAL_WORLD_SIZE", "1", "LOCAL_RANK=1 with LOCAL_WORLD_SIZE=1"),
    ];
    for (name, value, text) in cases {
        let error = of(&with(&TORCHRUN, name, Some(value))).expect_err(text);
        assert!(matches!(error, DistributedError::Contradiction { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn tasks_of_a_slurm_step_meet_on_its_first_node() {
    assert_eq!(place(&of(&STEP).expect("complete")), (5, 8, 1, Some(("gpu07", 24_123))));
    let second = with(&STEP, "SLURM_STEP_ID", Some("1"));
    assert_eq!(place(&of(&second).expect("complete")), (5, 8, 1, Some(("gpu07", 24_220))));
    let named = with(&with(&STEP, "MASTER_PORT", Some("4000")), "MASTER_ADDR", Some("10.0.0.7"));
    assert_eq!(place(&of(&named).expect("complete")), (5, 8, 1, Some(("10.0.0.7", 4000))));
    let of_step = with(&STEP, "SLURM_STEP_NODELIST", Some("gpu08"));
    assert_eq!(place(&of(&of_step).expect("complete")).3, Some(("gpu08", 24_123)));
    let one_node = with(&STEP, "SLURM_NNODES", Some("1"));
    assert_eq!(place(&of(&one_node).expect("complete")).3, Some(("127.0.0.1", 24_123)));
}

#[test]
fn torchrun_within_a_slurm_job_wins() {
    let both: Vec<_> = TORCHRUN.into_iter().chain(STEP).collect();
    assert_eq!(place(&of(&both).expect("complete")).0, 3);
}

#[test]
fn a_batch_script_without_srun_is_alone() {
    for step in [None, Some("4294967291"), Some("batch")] {
        let batch = with(&with(&STEP, "SLURM_STEP_ID", step), "SLURM_PROCID", Some("0"));
        assert_eq!(place(&of(&batch).expect("alone")), (0, 1, 0, None), "{step:?}");
    }
    let one_task = with(&STEP, "SLURM_STEP_NUM_TASKS", Some("1"));
    assert_eq!(of(&one_task).expect("alone").world(), 1);
}

#[test]
fn a_missing_variable_of_slurm_is_named() {
    for name in ["SLURM_LOCALID", "SLURM_JOB_NODELIST", "SLURM_JOB_ID"] {
        let error = of(&with(&STEP, name, None)).expect_err("incomplete");
        assert!(error.to_string().starts_with(&format!("{name} is not set, though ")), "{error}");
        assert_eq!(error.failure(), Failure::Config);
    }
}

#[test]
fn flags_win_as_a_set() {
    let whole = flags(Some(1), Some(2), Some("10.0.0.1:4000"));
    assert_eq!(place(&found(&whole, &TORCHRUN).expect("complete")), (1, 2, 1, Some(("10.0.0.1", 4000))));
    assert_eq!(place(&found(&whole, &[]).expect("complete")).2, 0, "one rank on each machine");
    let here = flags(Some(1), Some(2), Some("localhost:4000"));
    assert_eq!(place(&found(&here, &[]).expect("complete")).2, 1, "all ranks on this machine");
    let six = flags(Some(0), Some(2), Some("[::1]:4000"));
    assert_eq!(place(&found(&six, &[]).expect("complete")).3, Some(("::1", 4000)));
}

#[test]
fn a_missing_or_senseless_flag_is_named() {
    let part = found(&flags(Some(1), None, Some("host:4000")), &TORCHRUN).expect_err("incomplete");
    assert_eq!(part.to_string(), "--world-size is not set, though --rank is");
    let part = found(&flags(None, Some(2), None), &[]).expect_err("incomplete");
    assert_eq!(part.to_string(), "--rank is not set, though --world-size is");
    for master in ["host", "host:", ":4000", "host:0", "::1:4000", "host:port"] {
        let error = found(&flags(Some(0), Some(2), Some(master)), &[]).expect_err(master);
        assert!(error.to_string().contains(master), "{error}");
    }
}

#[test]
fn a_pod_of_an_indexed_job_takes_its_index_for_its_rank() {
    let pod = |index: &'static str, size: &'static str| {
        move |name: &str| match name {
            "JOB_COMPLETION_INDEX" => Some(index.to_owned()),
            "WORLD_SIZE" => Some(size.to_owned()),
            "MASTER_ADDR" => Some("train-0.train".to_owned()),
            "MASTER_PORT" => Some("29500".to_owned()),
            _ => None,
        }
    };
    let found = Rendezvous::find(&RendezvousFlags::default(), &pod("2", "4")).expect("a place");
    assert_eq!((found.rank(), found.world(), found.local_rank()), (2, 4, 0));
    let alone = Rendezvous::find(&RendezvousFlags::default(), &pod("", "1")).expect("alone");
    assert_eq!((alone.rank(), alone.world()), (0, 1));
    assert!(Rendezvous::find(&RendezvousFlags::default(), &pod("", "4")).is_err());
}

#[test]
fn the_first_host_is_found_in_every_form_of_list() {
    let cases = [
        ("a[01-03,7],b", Some("a01")),
        ("node5", Some("node5")),
        ("node5,node6", Some("node5")),
        ("gpu-a[7,9-12]", Some("gpu-a7")),
        ("rack[1-2]node[003-004]", Some("rack1node003")),
        ("rack[1-2]-ib0.cluster,b", Some("rack1-ib0.cluster")),
        ("n[08-11]", Some("n08")),
        ("", None),
        ("n[", None),
        ("n]", None),
        ("n[]", None),
        ("n[x-y]", None),
        (",a", None),
    ];
    for (list, expected) in cases {
        assert_eq!(first_host(list).as_deref(), expected, "{list:?}");
    }
}
