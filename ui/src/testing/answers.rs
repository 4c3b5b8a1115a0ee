//! What the scripted host answers.

use protocol::{
    ErrorInfo, ErrorKind, FontFile, JobId, KvBytes, MemoryBasis, MemoryPlan, ModelSource, Reply, Request, Update,
};

use super::{Script, facts, free, inside, story, sweeps};

/// The reply to a request.
pub(super) fn answer(s: &mut Script, request: &Request) -> Result<Reply, ErrorInfo> {
    if let Some(result) = s.custom.iter().rev().find_map(|c| c(request)) {
        return result;
    }
    let no_text = || ErrorInfo::new(ErrorKind::Input, "There is no text.");
    match request {
        Request::ListModels => Ok(Reply::Models(s.models.clone())),
        Request::PredictMemory { source, context } => Ok(Reply::Memory(memory(source, *context))),
        Request::OpenModel { .. } | Request::ReplayText => Ok(Reply::Job(JobId(7))),
        Request::Compare(_) => Ok(Reply::Job(JobId(9))),
        Request::FreeRun(_) => Ok(Reply::Job(JobId(13))),
        Request::GetFreeRun { since, .. } => Ok(Reply::FreeRun(Box::new(free::free_run(usize::MAX, *since)))),
        Request::Sweep(_) => Ok(Reply::Job(JobId(11))),
        Request::GetSweep { since, .. } => Ok(Reply::Sweep(Box::new(sweeps::sweep(usize::MAX, *since)))),
        Request::GetSweepRecipe { .. } => Ok(Reply::Text("{\"schema\":1}".into())),
        Request::ListDocs => Ok(Reply::Docs(s.docs.clone())),
        Request::GetDoc | Request::OpenDoc(_) | Request::NewDoc(_) => s.doc.clone().map(Reply::Doc).ok_or_else(no_text),
        Request::SelectLeaf(leaf) => {
            if let Some(doc) = &mut s.doc {
                doc.leaf = Some(*leaf);
            }
            s.doc.clone().map(Reply::Doc).ok_or_else(no_text)
        }
        Request::Send { .. } | Request::Generate { .. } | Request::EditMessage { .. } | Request::BranchAt { .. } => {
            Ok(Reply::Started { node: 3 })
        }
        Request::ExportDoc { format } => Ok(Reply::File {
            name: format!("story.{format}"),
            bytes: b"Once upon a time".to_vec(),
        }),
        Request::CountTokens(text) => Ok(Reply::Count(text.split_whitespace().count() as u64 * 4 / 3)),
        Request::EditRecipe(edits) => {
            let position = s.state.position;
            let recipe = s.state.recipe.get_or_insert_with(facts::recipe);
            facts::apply(recipe, edits, position);
            Ok(Reply::Recipe(recipe.clone()))
        }
        Request::SetRecipe(_) => {
            s.state.recipe = Some(facts::recipe());
            Ok(Reply::Recipe(facts::recipe()))
        }
        Request::ListPresets => Ok(Reply::Presets(facts::presets())),
        Request::GetTree => Ok(Reply::Tree(inside::tree())),
        Request::GetPlan { tokens, context } => Ok(Reply::Plan(inside::plan(*tokens, *context, s.state.op_timing))),
        Request::GetTensor(name) => Ok(Reply::Tensor(inside::tensor(name))),
        Request::GetBaselines => Ok(Reply::Baselines(facts::baselines())),
        Request::PreviewRecipe(edits) => Ok(Reply::Baselines(facts::preview(edits))),
        Request::GetComparison(_) => Ok(Reply::Compared(Box::new(inside::comparison()))),
        Request::ExportComparison { folder, .. } if folder.is_empty() => Ok(Reply::File {
            name: "comparison.zip".into(),
            bytes: b"PK".to_vec(),
        }),
        Request::ExportComparison { folder, .. } => Ok(Reply::Written(vec![format!("{folder}/report.html")])),
        Request::InspectAttention(spec) => Ok(Reply::Attention(inside::attention(*spec))),
        Request::InspectRows(layer) => Ok(Reply::Rows(inside::rows(*layer, s.state.position))),
        Request::InspectRouter => Ok(Reply::Router(inside::router(s.state.position))),
        Request::InspectMetric(name) => Ok(Reply::Metric(inside::metric(name, s.state.position))),
        Request::ListMetrics => Ok(Reply::Names(
            [
                "norm of the residual",
                "update by attention",
                "update by ffn",
                "logit lens rank",
            ]
            .map(str::to_string)
            .into(),
        )),
        Request::FindFont(c) => Ok(Reply::Font(FontFile {
            family: String::new(),
            index: 0,
            bytes: Vec::new(),
            missing: format!("No installed font has {c}. On Debian and Ubuntu the package fonts-noto-cjk brings one."),
        })),
        Request::About => Ok(Reply::Text(
            "MODEL1 Explorer 0.1.0\nCPU, 2 threads, AVX-512\nLinux 6.1 x86_64\n".into(),
        )),
        _ => Ok(Reply::Done),
    }
}

/// What follows a request besides its reply.
pub(super) fn after(s: &mut Script, request: &Request) -> Option<Update> {
    match request {
        Request::EditRecipe(_) | Request::SetRecipe(_) => {}
        Request::Stop => story::finish(&mut s.state, s.doc.as_mut()),
        Request::SetOpTiming(on) => s.state.op_timing = *on,
        Request::TakeOver => s.state.driver = true,
        _ => return None,
    }
    s.state.revision += 1;
    if matches!(request, Request::Stop) {
        s.state.doc_revision += 1;
    }
    Some(Update {
        state: Some(Box::new(s.state.clone())),
        ..Update::default()
    })
}

fn memory(source: &ModelSource, context: u64) -> MemoryPlan {
    let (weights, slope, most) = match source {
        ModelSource::Bundled => (22_400_000, 663, 4096),
        ModelSource::SmolLm2 => (98_000_000, 23_040, 8192),
        ModelSource::Path(_) => (8_045_000_000, 147_456, 40_960),
        ModelSource::Hub(_) => (3_554_214_752, 28_672, 131_072),
    };
    let context = if context == 0 { most } else { context.min(most) };
    let free = 7_945_689_498;
    let kv = KvBytes {
        window: slope * context,
        ..KvBytes::default()
    };
    let mut plan = MemoryPlan {
        basis: match source {
            ModelSource::SmolLm2 => MemoryBasis::Shape,
            _ => MemoryBasis::Headers,
        },
        weights,
        kv,
        workspace: 64 << 20,
        free,
        context,
        max_context: most,
        refusal: String::new(),
    };
    if plan.total() > free {
        plan.refusal = format!(
            "it needs {}, this machine has {} free",
            crate::fmt::bytes(plan.total()).plain(),
            crate::fmt::bytes(free).plain()
        );
    }
    plan
}
