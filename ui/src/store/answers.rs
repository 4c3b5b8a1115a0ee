//! Cached answers to questions: a view asks in every frame, the store sends a request only when the answer is missing
//! or no longer holds.

use std::collections::BTreeMap;

use protocol::{
    AttentionMap, AttentionSpec, BlockView, CompareResult, Edit, ErrorInfo, JobId, KeptRows, KvBaselines, MemoryPlan,
    ModelSource, ModelsView, PlanView, Preset, Reply, Request, RouterMap, TensorStats, TokenLayerMetric, encode,
};

/// What an answer depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The run of the host and the loaded model.
    Host,
    /// Also the recipe and whether ops are timed.
    Recipe,
    /// Also the current text. While it is being written, answers are renewed at most twice a second.
    Text,
}

/// A question with the type of its answer.
#[derive(Clone, Debug)]
pub struct Query<T> {
    /// The request to send.
    pub request: Request,
    /// What the answer depends on.
    pub scope: Scope,
    pick: fn(&Reply) -> Option<&T>,
}

macro_rules! queries {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $request:expr, $scope:ident, $reply:pat => $value:expr;)*) => {
        $(impl Query<$out> {
            $(#[$doc])*
            pub fn $name($($arg: $ty),*) -> Self {
                fn pick(reply: &Reply) -> Option<&$out> {
                    match reply {
                        $reply => Some($value),
                        _ => None,
                    }
                }
                Self { request: $request, scope: Scope::$scope, pick }
            }
        })*
    };
}

queries! {
    /// Start screen.
    models() -> ModelsView = Request::ListModels, Host, Reply::Models(v) => v;
    /// Memory of a model at a context length.
    memory(source: ModelSource, context: u64) -> MemoryPlan =
        Request::PredictMemory { source, context }, Host, Reply::Memory(v) => v;
    /// Presets of recipes.
    presets() -> Vec<Preset> = Request::ListPresets, Host, Reply::Presets(v) => v;
    /// Tree of blocks and tensors.
    tree() -> Vec<BlockView> = Request::GetTree, Recipe, Reply::Tree(v) => v;
    /// Plan with costs.
    plan(tokens: u32, context: u64) -> PlanView =
        Request::GetPlan { tokens, context }, Recipe, Reply::Plan(v) => v;
    /// Statistics of a tensor.
    tensor(name: &str) -> TensorStats = Request::GetTensor(name.to_string()), Host, Reply::Tensor(v) => v;
    /// KV bytes beside other layouts.
    baselines() -> KvBaselines = Request::GetBaselines, Recipe, Reply::Baselines(v) => v;
    /// KV bytes of the recipe in force and of the recipe with edits.
    preview(edits: Vec<Edit>) -> KvBaselines = Request::PreviewRecipe(edits), Recipe, Reply::Baselines(v) => v;
    /// Result of a finished comparison.
    comparison(job: JobId) -> CompareResult = Request::GetComparison(job), Host, Reply::Compared(v) => &**v;
    /// Attention of a layer.
    attention(spec: AttentionSpec) -> AttentionMap = Request::InspectAttention(spec), Text, Reply::Attention(v) => v;
    /// Kept rows of a CSA layer.
    rows(layer: u32) -> KeptRows = Request::InspectRows(layer), Text, Reply::Rows(v) => v;
    /// Router choices.
    router() -> RouterMap = Request::InspectRouter, Text, Reply::Router(v) => v;
    /// A figure per layer and token.
    metric(name: &str) -> TokenLayerMetric = Request::InspectMetric(name.to_string()), Text, Reply::Metric(v) => v;
    /// Names for `metric`.
    metric_names() -> Vec<String> = Request::ListMetrics, Host, Reply::Names(v) => v;
    /// Versions, device, paths.
    about() -> String = Request::About, Host, Reply::Text(v) => v;
    /// Tokens of a text under the loaded model.
    count(text: &str) -> u64 = Request::CountTokens(text.to_string()), Host, Reply::Count(v) => v;
}

/// An answer as far as it is there.
#[derive(Debug)]
pub enum Fetched<'a, T> {
    /// Asked for, nothing there yet.
    Loading,
    /// Here and current.
    Ready(&'a T),
    /// Here but of an earlier state; a new one is on the way.
    Stale(&'a T),
    /// The host could not answer.
    Failed(&'a ErrorInfo),
}

impl<T> Clone for Fetched<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Fetched<'_, T> {}

impl<'a, T> Fetched<'a, T> {
    /// The value, current or not.
    pub fn value(self) -> Option<&'a T> {
        match self {
            Fetched::Ready(v) | Fetched::Stale(v) => Some(v),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) model: u64,
    pub(super) recipe: Option<String>,
    pub(super) timing: bool,
    pub(super) text: Option<(u64, u64, u64)>,
    /// A text is being written: do not renew at every token.
    pub(super) busy: bool,
}

impl Stamp {
    fn holds(&self, now: &Stamp) -> bool {
        self.model == now.model && self.recipe == now.recipe && self.timing == now.timing && self.text == now.text
    }
}

struct Entry {
    value: Option<Result<Reply, ErrorInfo>>,
    stamp: Stamp,
    asked: f64,
    on_the_way: bool,
    used: std::cell::Cell<u64>,
}

/// Most answers kept; an attention map of 1024 tokens takes 4 MiB.
const CAPACITY: usize = 48;
/// Least time between two renewals while a text is being written, in seconds.
const RENEW: f64 = 0.5;

#[derive(Default)]
pub(super) struct Answers {
    entries: BTreeMap<Vec<u8>, Entry>,
    clock: std::cell::Cell<u64>,
    now: f64,
}

pub(super) fn key_of(request: &Request) -> Vec<u8> {
    // Requests of views are small; one that cannot be encoded cannot be sent either and shares the empty key.
    encode(request).unwrap_or_default()
}

impl Answers {
    pub(super) fn get<'a, T>(&'a self, query: &Query<T>, stamp: &Stamp) -> (Fetched<'a, T>, bool) {
        let Some(entry) = self.entries.get(&key_of(&query.request)) else {
            return (Fetched::Loading, true);
        };
        self.clock.set(self.clock.get() + 1);
        entry.used.set(self.clock.get());
        let holds = entry.stamp.holds(stamp);
        let same_model = entry.stamp.model == stamp.model;
        let wanted = !entry.on_the_way && !holds;
        let fetched = match &entry.value {
            Some(Ok(reply)) if same_model => match (query.pick)(reply) {
                Some(v) if holds => Fetched::Ready(v),
                Some(v) => Fetched::Stale(v),
                None => Fetched::Loading,
            },
            Some(Err(e)) if holds => Fetched::Failed(e),
            _ => Fetched::Loading,
        };
        (fetched, wanted)
    }

    /// Marks an answer as asked for. False if it is on the way already or was renewed a moment ago.
    pub(super) fn begin(&mut self, key: &[u8], stamp: Stamp, now: f64) -> bool {
        self.now = now;
        if let Some(entry) = self.entries.get_mut(key) {
            if entry.on_the_way || (stamp.busy && entry.value.is_some() && now - entry.asked < RENEW) {
                return false;
            }
            if entry.stamp.model != stamp.model {
                entry.value = None;
            }
            entry.stamp = stamp;
            entry.asked = now;
            entry.on_the_way = true;
            return true;
        }
        if self.entries.len() >= CAPACITY
            && let Some(oldest) = self
                .entries
                .iter()
                .filter(|(_, e)| !e.on_the_way)
                .min_by_key(|(_, e)| e.used.get())
                .map(|(k, _)| k.clone())
        {
            self.entries.remove(&oldest);
        }
        let used = std::cell::Cell::new(self.clock.get());
        self.entries.insert(
            key.to_vec(),
            Entry {
                value: None,
                stamp,
                asked: now,
                on_the_way: true,
                used,
            },
        );
        true
    }

    pub(super) fn arrived(&mut self, key: &[u8], result: Result<Reply, ErrorInfo>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.value = Some(result);
            entry.on_the_way = false;
        }
    }

    pub(super) fn forget(&mut self, key: &[u8]) {
        self.entries.remove(key);
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}
