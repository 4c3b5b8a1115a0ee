//! Every frame survives the way there and back, and no bytes whatever cause a panic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use proptest::prelude::*;
use protocol::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[track_caller]
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(frame: &T) {
    let bytes = encode(frame).unwrap();
    assert_eq!(&decode::<T>(&bytes).unwrap(), frame);
    // Nothing may follow, nothing may be missing.
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(decode::<T>(&longer), Err(ProtocolError::Trailing(1)));
    assert!(matches!(
        decode::<T>(&bytes[..bytes.len() - 1]),
        Err(ProtocolError::Malformed(_))
    ));
}

/// One of each; the number of variants is held by the match below.
fn requests() -> Vec<Request> {
    use Request as R;
    let text = || "text".to_string();
    vec![
        R::TakeOver,
        R::ListModels,
        R::PredictMemory {
            source: ModelSource::SmolLm2,
            context: 2048,
        },
        R::OpenModel {
            source: ModelSource::Hub("owner/name".into()),
            context: 0,
        },
        R::CloseModel,
        R::ForgetModel(text()),
        R::CancelJob(JobId(7)),
        R::ListDocs,
        R::NewDoc(DocKind::Text),
        R::OpenDoc(3),
        R::GetDoc,
        R::RenameDoc { doc: 3, title: text() },
        R::DeleteDoc(3),
        R::UndeleteDoc(3),
        R::SetSystem(text()),
        R::SelectLeaf(2),
        R::Send {
            text: text(),
            spec: spec(),
        },
        R::Generate {
            node: Some(1),
            spec: spec(),
        },
        R::EditMessage {
            node: 1,
            text: text(),
            spec: None,
        },
        R::BranchAt {
            node: 1,
            index: 2,
            token: 3,
            spec: spec(),
        },
        R::Stop,
        R::ExportDoc { format: "md".into() },
        R::CountTokens(text()),
        R::EditRecipe(vec![edit()]),
        R::SetRecipe("{}".into()),
        R::ListPresets,
        R::ReplayText,
        R::GetTree,
        R::GetPlan { tokens: 1, context: 9 },
        R::GetTensor(text()),
        R::SetOpTiming(true),
        R::GetBaselines,
        R::Compare(compare_spec()),
        R::GetComparison(JobId(1)),
        R::ExportComparison {
            job: JobId(1),
            folder: text(),
        },
        R::InspectAttention(attention_spec()),
        R::InspectRows(2),
        R::InspectRouter,
        R::InspectMetric(text()),
        R::ListMetrics,
        R::FindFont('\u{4e2d}'),
        R::SetSettings(Box::default()),
        R::About,
        R::PreviewRecipe(vec![edit()]),
        R::LookAtHost {
            address: text(),
            token: text(),
            same_build: true,
        },
        R::Sweep(sweep_spec()),
        R::GetSweep {
            job: JobId(1),
            since: 7,
        },
        R::GetSweepRecipe { job: JobId(1), cell: 3 },
        R::RestartEngine,
        R::FreeRun(free_run().spec),
        R::GetFreeRun {
            job: JobId(1),
            since: [3, 4],
        },
    ]
}

/// A new request must be added to `requests` as well.
fn number_of(r: &Request) -> usize {
    use Request as R;
    match r {
        R::TakeOver => 0,
        R::ListModels => 1,
        R::PredictMemory { .. } => 2,
        R::OpenModel { .. } => 3,
        R::CloseModel => 4,
        R::ForgetModel(_) => 5,
        R::CancelJob(_) => 6,
        R::ListDocs => 7,
        R::NewDoc(_) => 8,
        R::OpenDoc(_) => 9,
        R::GetDoc => 10,
        R::RenameDoc { .. } => 11,
        R::DeleteDoc(_) => 12,
        R::UndeleteDoc(_) => 13,
        R::SetSystem(_) => 14,
        R::SelectLeaf(_) => 15,
        R::Send { .. } => 16,
        R::Generate { .. } => 17,
        R::EditMessage { .. } => 18,
        R::BranchAt { .. } => 19,
        R::Stop => 20,
        R::ExportDoc { .. } => 21,
        R::CountTokens(_) => 22,
        R::EditRecipe(_) => 23,
        R::SetRecipe(_) => 24,
        R::ListPresets => 25,
        R::ReplayText => 26,
        R::GetTree => 27,
        R::GetPlan { .. } => 28,
        R::GetTensor(_) => 29,
        R::SetOpTiming(_) => 30,
        R::GetBaselines => 31,
        R::Compare(_) => 32,
        R::GetComparison(_) => 33,
        R::ExportComparison { .. } => 34,
        R::InspectAttention(_) => 35,
        R::InspectRows(_) => 36,
        R::InspectRouter => 37,
        R::InspectMetric(_) => 38,
        R::ListMetrics => 39,
        R::FindFont(_) => 40,
        R::SetSettings(_) => 41,
        R::About => 42,
        R::PreviewRecipe(_) => 43,
        R::LookAtHost { .. } => 44,
        R::Sweep(_) => 45,
        R::GetSweep { .. } => 46,
        R::GetSweepRecipe { .. } => 47,
        R::RestartEngine => 48,
        R::FreeRun(_) => 49,
        R::GetFreeRun { .. } => 50,
    }
}

fn replies() -> Vec<Reply> {
    use Reply as R;
    let models = ModelsView {
        bundled: card(),
        chat: card(),
        recent: vec![RecentModel {
            name: "m".into(),
            path: "/m".into(),
            kind: SourceKind::Gguf,
            bytes: 1,
            opened: 2,
        }],
        cached: Vec::new(),
        device: device(),
    };
    let memory = MemoryPlan {
        basis: MemoryBasis::Shape,
        weights: 1,
        kv: kv(),
        workspace: 2,
        free: 3,
        context: 4,
        max_context: 5,
        refusal: "no".into(),
    };
    let plan = PlanView {
        hash: "h".into(),
        phase: "decode".into(),
        tokens: 1,
        context: 2,
        ops: vec![OpView {
            id: 1,
            inputs: vec![0],
            layer: None,
            block: "head".into(),
            name: "logits".into(),
            kind: "mat_mul".into(),
            flops: 1,
            weight_bytes: 2,
            cache_bytes: 3,
            activation_bytes: 4,
            fused_with: 1,
            time: Some(OpTimeView { nanos: 1.5, steps: 3 }),
        }],
    };
    let tree = BlockView {
        layer: Some(1),
        block: "ffn".into(),
        kind: "SwiGLU".into(),
        slots: vec![("ffn".into(), "own".into())],
        tensors: vec![TensorView {
            name: "w".into(),
            shape: [2, 3],
            format: "f32".into(),
            bytes: 24,
        }],
    };
    let tensor = TensorStats {
        name: "w".into(),
        counted: 1,
        total: 2,
        min: -1.0,
        max: 1.0,
        mean: 0.0,
        std: 0.5,
        zeros: 1,
        not_finite: 0,
        limit: 2.0,
        histogram: vec![1, 2],
    };
    let attention = AttentionMap {
        spec: attention_spec(),
        segments: vec![
            Segment::Tokens { first: 0, columns: 2 },
            Segment::Rows {
                first: 0,
                columns: 1,
                rate: 4,
                overlap: true,
            },
            Segment::Sink,
        ],
        values: vec![0.5, -1.0],
        tokens: vec![TokenLabel {
            token: 1,
            text: "a".into(),
        }],
        heads: 4,
        head_stats: vec![(1.0, 0.1)],
    };
    let rows = KeptRows {
        layer: 2,
        rows: vec![RowSpan { first: 0, last: 3 }],
        kept: vec![vec![], vec![0]],
        recall: vec![1.0],
        attn_recall: 1.0,
        attn_recall_min: 0.5,
        top1_hit: 1.0,
        select_local_ratio: 0.5,
        judged: 1,
    };
    let router = RouterMap {
        layers: vec![0],
        experts: 8,
        per_token: 1,
        choices: vec![(3, 0.5)],
        tokens: Vec::new(),
    };
    vec![
        R::Done,
        R::Models(models),
        R::Memory(memory),
        R::Job(JobId(3)),
        R::Docs(vec![doc_info()]),
        R::Doc(doc()),
        R::Started { node: 4 },
        R::Count(5),
        R::Recipe(recipe()),
        R::Presets(vec![Preset {
            name: "p".into(),
            help: "h".into(),
            edits: vec![edit()],
            refused: "r".into(),
        }]),
        R::Tree(vec![tree]),
        R::Plan(plan),
        R::Tensor(tensor),
        R::Baselines(KvBaselines {
            fits: vec![KvFit {
                name: "n".into(),
                about: "a".into(),
                fixed: 1.0,
                slope: 2.0,
                crossover: Some(3),
            }],
        }),
        R::Compared(Box::new(compared())),
        R::Written(vec!["/a".into()]),
        R::File {
            name: "f.txt".into(),
            bytes: vec![0, 255],
        },
        R::Attention(attention),
        R::Rows(rows),
        R::Router(router),
        R::Metric(TokenLayerMetric {
            name: "norm".into(),
            unit: String::new(),
            layers: 1,
            tokens: 2,
            values: vec![1.0, 2.0],
        }),
        R::Names(vec!["norm".into()]),
        R::Font(FontFile {
            family: "f".into(),
            index: 1,
            bytes: vec![1],
            missing: "m".into(),
        }),
        R::Text("about".into()),
        R::RemoteHost(RemoteHost {
            authority: "box:80".into(),
            token: "0123".into(),
            version: "0.1.0".into(),
        }),
        R::Sweep(Box::new(sweep())),
        R::FreeRun(Box::new(free_run())),
    ]
}

/// A new reply must be added to `replies` as well.
fn reply_number(r: &Reply) -> usize {
    use Reply as R;
    match r {
        R::Done => 0,
        R::Models(_) => 1,
        R::Memory(_) => 2,
        R::Job(_) => 3,
        R::Docs(_) => 4,
        R::Doc(_) => 5,
        R::Started { .. } => 6,
        R::Count(_) => 7,
        R::Recipe(_) => 8,
        R::Presets(_) => 9,
        R::Tree(_) => 10,
        R::Plan(_) => 11,
        R::Tensor(_) => 12,
        R::Baselines(_) => 13,
        R::Compared(_) => 14,
        R::Written(_) => 15,
        R::File { .. } => 16,
        R::Attention(_) => 17,
        R::Rows(_) => 18,
        R::Router(_) => 19,
        R::Metric(_) => 20,
        R::Names(_) => 21,
        R::Font(_) => 22,
        R::Text(_) => 23,
        R::RemoteHost(_) => 24,
        R::Sweep(_) => 25,
        R::FreeRun(_) => 26,
    }
}

#[test]
fn requests_round_trip() {
    let all = requests();
    assert!(all.iter().enumerate().all(|(i, r)| number_of(r) == i));
    assert_eq!(all.len(), 51);
    for (i, request) in all.into_iter().enumerate() {
        round_trip(&ClientFrame {
            id: i as u64,
            body: ClientBody::Request(Box::new(request)),
        });
    }
    round_trip(&ClientFrame {
        id: u64::MAX,
        body: ClientBody::Hello(Hello {
            cursor: Cursor {
                run: 1,
                token: 2,
                step: 3,
            },
            take_over: true,
            ..Hello::new("test")
        }),
    });
}

#[test]
fn replies_round_trip() {
    let all = replies();
    assert!(all.iter().enumerate().all(|(i, r)| reply_number(r) == i));
    assert_eq!(all.len(), 27);
    for (i, reply) in all.into_iter().enumerate() {
        round_trip(&HostFrame::Reply {
            id: i as u64,
            result: Ok(Box::new(reply)),
        });
    }
    for kind in [
        ErrorKind::Input,
        ErrorKind::Resource,
        ErrorKind::Cancelled,
        ErrorKind::Refused,
        ErrorKind::Internal,
    ] {
        let error = ErrorInfo { kind, ..error() };
        round_trip(&HostFrame::Reply {
            id: 0,
            result: Err(error),
        });
    }
}

#[test]
fn welcomes_and_updates_round_trip() {
    let host = HostInfo::new("0.1.0", 5, true, "Linux");
    round_trip(&HostFrame::Welcome(Box::new(Welcome::Accepted {
        host,
        driver: true,
        settings: Settings::default(),
    })));
    round_trip(&HostFrame::Welcome(Box::new(Welcome::Refused("no".into()))));
    round_trip(&HostFrame::Update(Box::default()));
    let models = [
        ModelState::None,
        ModelState::Loading {
            name: "m".into(),
            job: JobId(1),
        },
        ModelState::Ready(Box::new(loaded())),
        ModelState::Failed {
            name: "m".into(),
            error: error(),
        },
    ];
    let jobs = [
        JobState::Queued,
        JobState::Running,
        JobState::Done,
        JobState::Failed(error()),
    ];
    let kinds = [
        JobKind::Load,
        JobKind::Compare,
        JobKind::Replay,
        JobKind::Sweep,
        JobKind::FreeRun,
    ];
    for (model, job) in models.into_iter().zip(jobs) {
        let job = |kind: &JobKind| JobView {
            id: JobId(2),
            kind: kind.clone(),
            what: "loading".into(),
            done: 1,
            total: 2,
            unit: "bytes".into(),
            state: job.clone(),
        };
        round_trip(&HostFrame::Update(Box::new(Update {
            state: Some(Box::new(state(model))),
            tokens: vec![TokenEntry {
                seq: 1,
                doc: 2,
                node: 3,
                index: 4,
                info: token(),
            }],
            steps: vec![step()],
            last_step: 9,
            steps_lost: 3,
            jobs: kinds.iter().map(job).collect(),
            events: vec![
                Event::Finished {
                    doc: 1,
                    node: 2,
                    finish: FinishView::Stop,
                    summary: summary(),
                },
                Event::Swapped {
                    position: 1,
                    converted: 2,
                    hash: "h".into(),
                },
            ],
            notices: vec![Notice {
                seq: 1,
                text: "n".into(),
                warning: true,
            }],
        })));
    }
}

/// NaN is a value of the protocol (probabilities that were not computed), though it equals nothing.
#[test]
fn nan_comes_back_as_nan() {
    let entry = TokenInfo {
        logprob: f32::NAN,
        ..token()
    };
    let back: TokenInfo = decode(&encode(&entry).unwrap()).unwrap();
    assert!(back.logprob.is_nan());
}

#[test]
fn frames_beyond_the_limit_are_refused_both_ways() {
    let big = Reply::File {
        name: "f".into(),
        bytes: vec![0; MAX_FRAME],
    };
    let frame = HostFrame::Reply {
        id: 1,
        result: Ok(Box::new(big)),
    };
    assert!(matches!(encode(&frame), Err(ProtocolError::TooLarge(n)) if n > MAX_FRAME));
    let error = decode::<HostFrame>(&vec![0; MAX_FRAME + 1]).unwrap_err();
    assert_eq!(error, ProtocolError::TooLarge(MAX_FRAME + 1));
    assert!(error.to_string().contains(&MAX_FRAME.to_string()), "{error}");
}

/// Lengths are claims: a few bytes that promise 2^60 elements are refused without the memory being asked for.
#[test]
fn promised_lengths_cost_nothing() {
    let mut bytes = encode(&HostFrame::Update(Box::default())).unwrap();
    // state: None is byte 1; the number of tokens is byte 2.
    assert_eq!(bytes[2], 0);
    bytes.splice(2..3, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(decode::<HostFrame>(&bytes), Err(ProtocolError::Malformed(_))));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode::<ClientFrame>(&bytes);
        let _ = decode::<HostFrame>(&bytes);
    }

    /// Damaged frames reach deeper than random bytes do.
    #[test]
    fn damaged_frames_never_panic(which in 0usize..51, at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let request = requests().swap_remove(which);
        let frame = ClientFrame { id: 1, body: ClientBody::Request(Box::new(request)) };
        let mut bytes = encode(&frame).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = decode::<ClientFrame>(&bytes);
    }
}
