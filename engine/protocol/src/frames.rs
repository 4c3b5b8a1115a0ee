//! Frames, requests and replies.

use serde::{Deserialize, Serialize};

use crate::{
    AttentionMap, AttentionSpec, BlockView, CompareResult, CompareSpec, DeviceView, DocInfo, DocKind, DocView, Edit,
    ErrorInfo, FinishView, FontFile, FreeSpec, FreeView, GenerateSpec, KeptRows, KvBaselines, LoadedModel, MAX_FRAME,
    MemoryPlan, ModelSource, ModelState, ModelsView, PROTOCOL_VERSION, PlanView, Preset, RecipeView, RemoteHost,
    RouterMap, RunSummary, SCHEMA_HASH, Settings, StepRecord, SweepSpec, SweepView, TensorStats, TokenEntry,
    TokenLayerMetric,
};

/// A long job of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId(pub u64);

/// How far a client got in the streams of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Run of the host the numbers belong to ([`HostInfo::run`]); 0 = none yet.
    pub run: u64,
    /// Last token seen.
    pub token: u64,
    /// Last telemetry step seen.
    pub step: u64,
}

/// First frame of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`] of the client. Stays the first field, for hosts of other builds.
    pub version: u32,
    /// [`SCHEMA_HASH`] of the client. Stays the second field.
    pub schema: u64,
    /// What it is, for logs: `browser`, `window`, `tauri`, `test`.
    pub client: String,
    /// Where it left off.
    pub cursor: Cursor,
    /// Asks for the driver's seat even if somebody has it.
    pub take_over: bool,
}

impl Hello {
    /// The first frame of a fresh client.
    pub fn new(client: &str) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            schema: SCHEMA_HASH,
            client: client.to_string(),
            cursor: Cursor::default(),
            take_over: false,
        }
    }
}

/// About the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// [`PROTOCOL_VERSION`] of the host. Stays the first field, for clients of other builds.
    pub version: u32,
    /// [`SCHEMA_HASH`] of the host. Stays the second field.
    pub schema: u64,
    /// Version of the program.
    pub program: String,
    /// Random number of this run of the host; cursors of another run start over.
    pub run: u64,
    /// Whether files on the host can be named by this client (native and Tauri: yes; remote browsers: yes, by path).
    pub local: bool,
    /// Operating system and machine in words.
    pub machine: String,
    /// What is shown where it is a recorded run and nothing is computed, in a sentence; empty where a host is at work.
    pub recorded: String,
}

impl HostInfo {
    /// A host of this build.
    pub fn new(program: &str, run: u64, local: bool, machine: &str) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            schema: SCHEMA_HASH,
            program: program.to_string(),
            run,
            local,
            machine: machine.to_string(),
            recorded: String::new(),
        }
    }
}

/// First frame of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Welcome {
    /// Come in.
    Accepted {
        /// The host.
        host: HostInfo,
        /// Whether this client may change things (else it is a read-only viewer).
        driver: bool,
        /// Settings.
        settings: Settings,
    },
    /// The sentence says why not and what to do.
    Refused(String),
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientFrame {
    /// Chosen by the client; the reply carries it.
    pub id: u64,
    /// Content.
    pub body: ClientBody,
}

/// Content of a client's frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ClientBody {
    /// The handshake; only as the first frame.
    Hello(Hello),
    /// A request.
    Request(Box<Request>),
}

/// What the host sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum HostFrame {
    /// Answer to the handshake.
    Welcome(Box<Welcome>),
    /// Answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// The answer.
        result: Result<Box<Reply>, ErrorInfo>,
    },
    /// What changed since the last one.
    Update(Box<Update>),
}

/// Requests. Those marked (driver) are refused for viewers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Become the driver; the former one becomes a viewer. -> Done
    TakeOver,
    /// Cards, recent models, device. -> Models
    ListModels,
    /// Memory of a model at a context length, from its headers or what is known of its shape. -> Memory
    PredictMemory {
        /// The model.
        source: ModelSource,
        /// Context in tokens; 0 = the checkpoint's.
        context: u64,
    },
    /// (driver) Fetch if needed and load; the state and a job follow in updates. -> Job
    OpenModel {
        /// The model.
        source: ModelSource,
        /// Context in tokens; 0 = the settings'.
        context: u64,
    },
    /// (driver) Unload. -> Done
    CloseModel,
    /// (driver) Remove from the list of recent models. -> Done
    ForgetModel(String),
    /// Stop a job. -> Done
    CancelJob(JobId),

    /// Saved texts, latest first. -> Docs
    ListDocs,
    /// (driver) A new text becomes the current one. -> Doc
    NewDoc(DocKind),
    /// (driver) Make a saved text the current one. -> Doc
    OpenDoc(u64),
    /// The current text as it stands. -> Doc
    GetDoc,
    /// (driver) Rename. -> Done
    RenameDoc {
        /// Text.
        doc: u64,
        /// New title; empty = the first words.
        title: String,
    },
    /// (driver) Delete a saved text; `UndeleteDoc` brings it back until the host ends. -> Done
    DeleteDoc(u64),
    /// (driver) -> Done
    UndeleteDoc(u64),
    /// (driver) System prompt of the current chat. -> Done
    SetSystem(String),
    /// (driver) Show the branch that ends with this message. -> Doc
    SelectLeaf(u32),
    /// (driver) Write a user message (or the prompt of a text) after the shown branch and generate. -> Started
    Send {
        /// What the user writes.
        text: String,
        /// How.
        spec: GenerateSpec,
    },
    /// (driver) Generate a sibling of this message of the model (regenerate), or continue the shown branch with
    /// `None`. -> Started
    Generate {
        /// Message to write anew.
        node: Option<u32>,
        /// How.
        spec: GenerateSpec,
    },
    /// (driver) A sibling of this message with another text; a user's message is answered anew. -> Started or Done
    EditMessage {
        /// Message.
        node: u32,
        /// New text.
        text: String,
        /// How to answer; `None` = only change the text.
        spec: Option<GenerateSpec>,
    },
    /// (driver) A sibling of this message of the model that keeps its first `index` tokens, takes `token` and goes
    /// on. -> Started
    BranchAt {
        /// Message.
        node: u32,
        /// Number of tokens kept.
        index: u32,
        /// Token taken instead.
        token: u32,
        /// How.
        spec: GenerateSpec,
    },
    /// (driver) Stop generating; what was written stays. -> Done
    Stop,
    /// The current text as a file. -> File
    ExportDoc {
        /// `txt`, `md` or `json`.
        format: String,
    },
    /// How many tokens a text has under the loaded model. -> Count
    CountTokens(String),

    /// (driver) Apply edits to the recipe from the next token on; all or none. -> Recipe
    EditRecipe(Vec<Edit>),
    /// (driver) Put a recipe in force: full or short JSON form. -> Recipe
    SetRecipe(String),
    /// Presets for the loaded model. -> Presets
    ListPresets,
    /// (driver) After a swap that converted rows: compute the text's cache anew under the recipe in force. -> Job
    ReplayText,

    /// Tree of blocks and tensors. -> Tree
    GetTree,
    /// Plan of a step with costs, and measured times where op timing ran. -> Plan
    GetPlan {
        /// Tokens in the step.
        tokens: u32,
        /// Tokens before it.
        context: u64,
    },
    /// Statistics of a tensor. -> Tensor
    GetTensor(String),
    /// (driver) Time every op on sampled steps (level L1). -> Done
    SetOpTiming(bool),
    /// KV bytes of the model beside other layouts, as functions of the context. -> Baselines
    GetBaselines,

    /// (driver) Compare; the result is fetched when the job has ended. -> Job
    Compare(CompareSpec),
    /// Result of a comparison. -> Compared
    GetComparison(JobId),
    /// Write a report: recipes, environment, CSV, PNG, standalone page. With a folder on the host it is written
    /// there (it must not exist or be empty); without, the answer is a ZIP. -> Written or File
    ExportComparison {
        /// Job of the comparison.
        job: JobId,
        /// Folder on the host; empty = answer with a ZIP.
        folder: String,
    },

    /// Attention of a layer over the current text. -> Attention
    InspectAttention(AttentionSpec),
    /// Kept rows of a CSA layer. -> Rows
    InspectRows(u32),
    /// Router choices. -> Router
    InspectRouter,
    /// A figure per layer and token of the current text, by name (`ListMetrics`). -> Metric
    InspectMetric(String),
    /// Names for `InspectMetric`. -> Names
    ListMetrics,

    /// A font with this character. -> Font
    FindFont(char),
    /// (driver) Keep settings. -> Done
    SetSettings(Box<Settings>),
    /// Versions, device, paths: for reports. -> Text
    About,
    /// KV bytes of the recipe in force, then of the recipe with these edits; nothing is changed. An edit that would
    /// be refused is refused here. -> Baselines
    PreviewRecipe(Vec<Edit>),
    /// (driver) Look whether another machine has a host that lets this one in. Spends no link. -> RemoteHost
    LookAtHost {
        /// `HOST:PORT`, or the whole link.
        address: String,
        /// Token of the link; may be empty where the address has it.
        token: String,
        /// Refuse a host of another build: its frames could not be read here.
        same_build: bool,
    },
    /// (driver) Measure many recipes; figures are fetched as they come. What an earlier sweep of the same model, A and
    /// text has measured is taken over: a sweep that was stopped goes on. -> Job
    Sweep(SweepSpec),
    /// A sweep as it stands. -> Sweep
    GetSweep {
        /// Its job.
        job: JobId,
        /// Only cells that changed after this revision; 0 = all.
        since: u64,
    },
    /// The recipe of a cell of a sweep, as JSON. -> Text
    GetSweepRecipe {
        /// Job of the sweep.
        job: JobId,
        /// Number of the cell.
        cell: u32,
    },
    /// (driver) Start the engine's process again after it ended, and read the text into it. -> Job
    RestartEngine,
    /// (driver) Let two recipes write their own texts after the same prompt; tokens and figures are fetched as they
    /// come. -> Job
    FreeRun(FreeSpec),
    /// A free run as it stands. -> FreeRun
    GetFreeRun {
        /// Its job.
        job: JobId,
        /// Tokens of A and of B that the client has: only later ones are sent.
        since: [u64; 2],
    },
}

/// Replies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each request names its reply")]
#[expect(clippy::large_enum_variant, reason = "a reply is made once and boxed in its frame")]
pub enum Reply {
    Done,
    Models(ModelsView),
    Memory(MemoryPlan),
    Job(JobId),
    Docs(Vec<DocInfo>),
    Doc(DocView),
    /// The message being written.
    Started {
        node: u32,
    },
    Count(u64),
    Recipe(RecipeView),
    Presets(Vec<Preset>),
    Tree(Vec<BlockView>),
    Plan(PlanView),
    Tensor(TensorStats),
    Baselines(KvBaselines),
    Compared(Box<CompareResult>),
    /// Files written, full paths.
    Written(Vec<String>),
    File {
        name: String,
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    Attention(AttentionMap),
    Rows(KeptRows),
    Router(RouterMap),
    Metric(TokenLayerMetric),
    Names(Vec<String>),
    Font(FontFile),
    Text(String),
    RemoteHost(RemoteHost),
    Sweep(Box<SweepView>),
    FreeRun(Box<FreeView>),
}

/// What a job does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobKind {
    /// Fetching or loading a model.
    Load,
    /// Comparing.
    Compare,
    /// Replaying the text after a swap.
    Replay,
    /// Storing weights otherwise because a recipe wants it.
    Store,
    /// Measuring many recipes.
    Sweep,
    /// Letting two recipes write.
    FreeRun,
}

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobState {
    /// Waiting for the engine.
    Queued,
    /// Running.
    Running,
    /// Done.
    Done,
    /// Failed or cancelled.
    Failed(ErrorInfo),
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// What it is doing now, in words: `fetching SmolLM2-135M-Instruct`.
    pub what: String,
    /// Units done.
    pub done: u64,
    /// Units there are; 0 = unknown.
    pub total: u64,
    /// `bytes`, `tokens`.
    pub unit: String,
    /// State.
    pub state: JobState,
}

/// Something worth saying once, at the bottom of the window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Sequence number.
    pub seq: u64,
    /// The sentence.
    pub text: String,
    /// Whether it is a warning.
    pub warning: bool,
}

/// The small state of the host; sent whole when any of it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateView {
    /// Rises with every change.
    pub revision: u64,
    /// What is loaded.
    pub model: ModelState,
    /// The recipe in force; `None` without a model.
    pub recipe: Option<RecipeView>,
    /// The current text; `None` without a model.
    pub doc: Option<DocInfo>,
    /// Changes whenever the current text changed other than by tokens being appended: fetch it with `GetDoc`.
    pub doc_revision: u64,
    /// The message being written.
    pub writing: Option<u32>,
    /// Prompt tokens processed and to process, while the prompt is being read.
    pub prefill: Option<(u64, u64)>,
    /// Tokens of the context that the shown branch takes up, as far as the model has read it.
    pub position: u64,
    /// Context length.
    pub context: u64,
    /// Whether this client is the driver.
    pub driver: bool,
    /// Clients connected.
    pub clients: u32,
    /// The device.
    pub device: DeviceView,
    /// Resident memory of the engine process in bytes; 0 = unknown.
    pub memory: u64,
    /// Whether ops are timed.
    pub op_timing: bool,
    /// Why the engine's process does not run, in a sentence (`RestartEngine` starts it); empty where it does, or where
    /// the engine has none of its own.
    #[serde(default)]
    pub engine_ended: String,
    /// Bytes of weights that the recipe in force stores otherwise, beside the loaded ones.
    #[serde(default)]
    pub restored_bytes: u64,
}

impl StateView {
    /// The loaded model.
    pub fn loaded(&self) -> Option<&LoadedModel> {
        match &self.model {
            ModelState::Ready(m) => Some(m),
            _ => None,
        }
    }
}

/// Something that happened in the running text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A message is finished.
    Finished {
        /// Text.
        doc: u64,
        /// Message.
        node: u32,
        /// Why.
        finish: FinishView,
        /// Speeds.
        summary: RunSummary,
    },
    /// A recipe was put in force at a position of the context.
    Swapped {
        /// First position under the new recipe.
        position: u64,
        /// Cache components whose rows were converted.
        converted: u32,
        /// Hash of the recipe.
        hash: String,
    },
}

/// What changed since the last update to this client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// The small state, if it changed.
    pub state: Option<Box<StateView>>,
    /// New tokens, in order.
    pub tokens: Vec<TokenEntry>,
    /// New telemetry steps, in order.
    pub steps: Vec<StepRecord>,
    /// Sequence number of the last step of `steps` in the host's ring.
    pub last_step: u64,
    /// Steps that were overwritten before this client got them.
    pub steps_lost: u64,
    /// Jobs that changed.
    pub jobs: Vec<JobView>,
    /// Events, in order.
    pub events: Vec<Event>,
    /// New notices.
    pub notices: Vec<Notice>,
}

impl Update {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.state.is_none()
            && self.tokens.is_empty()
            && self.steps.is_empty()
            && self.steps_lost == 0
            && self.jobs.is_empty()
            && self.events.is_empty()
            && self.notices.is_empty()
    }
}

/// A frame that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// Larger than [`MAX_FRAME`].
    TooLarge(usize),
    /// Not a frame of this protocol.
    Malformed(String),
    /// Bytes left over after the frame.
    Trailing(usize),
}

impl std::fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ProtocolError::TooLarge(n) => write!(f, "a frame of {n} bytes; accepted: at most {MAX_FRAME}"),
            ProtocolError::Malformed(e) => write!(f, "not a frame of protocol {PROTOCOL_VERSION}: {e}"),
            ProtocolError::Trailing(n) => write!(f, "{n} bytes after the end of a frame; accepted: none"),
        }
    }
}

impl std::error::Error for ProtocolError {}

/// A frame as bytes.
///
/// # Errors
/// [`ProtocolError::TooLarge`] if it would be refused at the other end.
pub fn encode<T: Serialize>(frame: &T) -> Result<Vec<u8>, ProtocolError> {
    let bytes = postcard::to_allocvec(frame).map_err(|e| ProtocolError::Malformed(e.to_string()))?;
    if bytes.len() > MAX_FRAME {
        return Err(ProtocolError::TooLarge(bytes.len()));
    }
    Ok(bytes)
}

/// A frame from bytes.
///
/// # Errors
/// Whatever is wrong with the bytes; they are untrusted and never cause a panic.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ProtocolError> {
    if bytes.len() > MAX_FRAME {
        return Err(ProtocolError::TooLarge(bytes.len()));
    }
    let (frame, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|e| ProtocolError::Malformed(e.to_string()))?;
    if rest.is_empty() {
        Ok(frame)
    } else {
        Err(ProtocolError::Trailing(rest.len()))
    }
}
