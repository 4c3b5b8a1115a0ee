//! A thousand random swaps while a text is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::recipe::slot_views;
use engine::{
    Cancel, Engine, GenerateOptions, Generation, Recipe, SamplerParams, Session, SessionOptions, Step, memory,
};
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{
    Backend, CacheDesc, CacheId, ExecError, KvBytes, Plan, Snapshot, State, StepOutput, StepRequest, WeightSource,
};
use model1_tests::ahead::readable;
use model1_tests::goldens::{engine, engine_with, folder};

const SWAPS: usize = 1000;
/// After so many swaps every variant of every weight has been made, and every buffer has its size.
const WARM: usize = 400;
/// Tokens of a text before the next one is begun.
const TEXT: usize = 90;
/// More memory than this after the warm-up would be a leak: one cache lost per swap is ten times as much.
const GROWTH: u64 = 24 << 20;

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides.max(1) as u64) as usize
    }
}

/// An edit of some slot, in one layer, several or all, with options somewhere in their range. Not every layer takes it.
fn random_edit(engine: &Engine, dice: &mut Dice) -> String {
    let slots = slot_views(engine.facts(), engine.registry());
    let open: Vec<_> = slots.iter().filter(|s| s.fixed.is_empty()).collect();
    let slot = open[dice.roll(open.len())];
    let variant = &slot.variants[dice.roll(slot.variants.len())];
    let mut choice = variant.name.clone();
    for (i, o) in variant.options.iter().enumerate() {
        let value = match &o.kind {
            protocol::OptionKind::Whole { min, max, .. } => {
                let most = (*max).min(min + 40);
                protocol::OptionValue::Whole(min + dice.roll((most - min + 1) as usize) as u64)
            }
            protocol::OptionKind::Heads => protocol::OptionValue::Heads(vec![dice.roll(4) as u32]),
            other => other.default(),
        };
        choice += &format!("{}{}={value}", if i == 0 { ':' } else { ',' }, o.name);
    }
    if !slot.per_layer {
        return format!("{}={choice}", slot.name);
    }
    let last = engine.facts().layers.len() - 1;
    let from = dice.roll(last + 1);
    let to = from + dice.roll(last - from + 1);
    match dice.roll(4) {
        0 => format!("layers.*.{}={choice}", slot.name),
        1 => format!("layers.{from}-{to}.{}={choice}", slot.name),
        _ => format!("layers.{from}.{}={choice}", slot.name),
    }
}

/// What happened to a session since a text began.
enum Did {
    Swapped(Box<Recipe>),
    Read(Vec<u32>),
}

/// Everything a session holds of its text, as bits.
fn held(session: &mut Session) -> Vec<Vec<u32>> {
    let position = session.position();
    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let mut all = vec![bits(&session.output().logits)];
    for i in 0..session.state().caches().len() {
        for slot in readable(session.state().caches()[i].rows, position) {
            all.push(bits(&session.state().read_rows(CacheId(i as u32), slot, 1).unwrap()));
        }
    }
    all
}

fn options() -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(400),
        sampler: Some(SamplerParams {
            temperature: 0.9,
            seed: 5,
            ..SamplerParams::default()
        }),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

fn prompt(engine: &Engine, dice: &mut Dice) -> Vec<u32> {
    let vocab = engine.facts().vocab;
    (0..9 + dice.roll(14))
        .map(|_| dice.roll(vocab - 2) as u32 + 2)
        .collect()
}

/// Does the same again in a fresh session: what it holds must be the same bits.
fn replay(engine: &Arc<Engine>, begun: &Recipe, did: &[Did], session: &mut Session, what: &str) {
    let mut fresh = engine.session(begun.clone(), SessionOptions::default()).unwrap();
    for step in did {
        match step {
            Did::Swapped(recipe) => drop(fresh.apply((**recipe).clone()).unwrap()),
            Did::Read(ids) => fresh
                .feed(ids, options().sampler.as_ref(), &Cancel::default(), &mut ())
                .unwrap(),
        }
    }
    assert_eq!(fresh.tokens(), session.tokens(), "{what}");
    assert_eq!(fresh.recipe(), session.recipe(), "{what}");
    assert_eq!(
        held(&mut fresh),
        held(session),
        "{what}: the same swaps in a fresh session"
    );
}

fn soak(name: &str, seed: u64) {
    let engine = engine(name, 2);
    let mut dice = Dice(seed);
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    let (mut swaps, mut refused, mut converted, mut texts) = (0, 0, 0, 0);
    let mut warm = 0;
    while swaps < SWAPS {
        let begun = session.recipe().clone();
        let ids = prompt(&engine, &mut dice);
        let mut run = Generation::begin(&mut session, &ids, options()).unwrap();
        let mut did = vec![Did::Read(ids.clone())];
        let mut shown: Vec<u32> = Vec::new();
        let mut fed = 0;
        let mut untouched = true;
        while swaps < SWAPS && shown.len() < TEXT {
            let edit = random_edit(&engine, &mut dice);
            let before = session.recipe().clone();
            match session.set(&edit) {
                Ok(report) => {
                    swaps += 1;
                    converted += report.converted;
                    untouched &= report.converted == 0 || session.position() == 0;
                    if session.position() == 0 {
                        // The prompt has not been read: it will be read under this recipe.
                        did.insert(did.len() - 1, Did::Swapped(Box::new(session.recipe().clone())));
                    } else {
                        did.push(Did::Swapped(Box::new(session.recipe().clone())));
                    }
                }
                Err(_) => {
                    refused += 1;
                    assert_eq!(session.recipe(), &before, "{edit}: a refused swap changes nothing");
                }
            }
            for _ in 0..1 + dice.roll(2) {
                // A token that was drawn is read in the next step.
                if fed < shown.len() {
                    did.push(Did::Read(vec![shown[fed]]));
                    fed += 1;
                }
                let Step::Token(token) = run.step(&mut session).unwrap() else {
                    panic!("the text ended");
                };
                shown.push(token.token);
                assert_eq!(
                    run.tokens(),
                    shown,
                    "{name} after {edit}: tokens already shown never change"
                );
                assert_eq!(session.tokens()[..ids.len()], ids[..]);
                assert_eq!(
                    session.tokens()[ids.len()..],
                    shown[..session.tokens().len() - ids.len()]
                );
            }
            assert!(
                session.output().logits.iter().all(|v| v.is_finite()),
                "{name} after {edit}"
            );
            if swaps >= WARM && warm == 0 {
                warm = memory::resident().unwrap();
            }
        }
        texts += 1;
        if texts % 3 == 1 || untouched {
            replay(&engine, &begun, &did, &mut session, &format!("{name}, text {texts}"));
        }
        // The text read anew under the recipe that is now in force, as the app does on request: nothing of what was
        // converted is left.
        if texts % 4 == 2 {
            let tokens = session.tokens().to_vec();
            session.truncate(0, &Cancel::default()).unwrap();
            session.feed(&tokens, None, &Cancel::default(), &mut ()).unwrap();
            let mut fresh = engine
                .session(session.recipe().clone(), SessionOptions::default())
                .unwrap();
            fresh.feed(&tokens, None, &Cancel::default(), &mut ()).unwrap();
            assert_eq!(held(&mut fresh), held(&mut session), "{name}, text {texts}: read anew");
        }
    }
    let grown = memory::resident().unwrap().saturating_sub(warm);
    println!(
        "{name}: {swaps} swaps ({converted} components converted, {refused} edits refused), {texts} texts, {} KiB more \
         after the warm-up",
        grown >> 10
    );
    assert!(converted > 100 && texts > 8, "{converted} {texts}");
    assert!(
        grown <= GROWTH,
        "{name}: {grown} bytes more after {} swaps",
        SWAPS - WARM
    );
}

#[test]
fn a_thousand_swaps_in_model1() {
    soak("tiny-v4", 2026);
}

#[test]
fn a_thousand_swaps_in_a_llama() {
    soak("tiny-llama", 11);
}

/// A device with memory for so many more conversions of a cache component.
struct Tight(CpuBackend, Arc<AtomicUsize>);

struct Held(Box<dyn State>, Arc<AtomicUsize>);

impl State for Held {
    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self.0.as_any_mut()
    }
    fn caches(&self) -> &[CacheDesc] {
        self.0.caches()
    }
    fn reserve(&mut self, context: u64) -> Result<(), ExecError> {
        self.0.reserve(context)
    }
    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError> {
        self.0.snapshot(position)
    }
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError> {
        self.0.restore(snapshot)
    }
    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError> {
        // What gives memory back always works.
        let smaller = desc.row_bytes() < self.0.caches()[cache.0 as usize].row_bytes();
        let left = self.1.load(Ordering::Relaxed);
        if left == 0 && !smaller {
            return Err(ExecError::OutOfMemory {
                what: "a component of the KV cache".into(),
                bytes: 1 << 20,
            });
        }
        self.1.store(left.saturating_sub(1), Ordering::Relaxed);
        self.0.reformat(cache, desc, position)
    }
    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        self.0.read_rows(cache, first, count)
    }
    fn fork(&self, position: u64) -> Result<Box<dyn State>, ExecError> {
        Ok(Box::new(Held(self.0.fork(position)?, self.1.clone())))
    }
    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)> {
        self.0.kv_bytes(context)
    }
}

impl Backend for Tight {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        Ok(Box::new(Held(self.0.new_state(caches, context)?, self.1.clone())))
    }
    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        self.0.run(plan, weights, state, request, out)
    }
}

#[test]
fn memory_that_runs_out_in_the_middle_of_a_swap_leaves_the_recipe_of_before() {
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let backend = Tight(CpuBackend::with(Cpu::exact(1)), left.clone());
    let engine = engine_with(&folder("tiny-v4"), Arc::new(backend)).unwrap();
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    session.set("layers.*.kv_cache=bf16").unwrap();
    let ids: Vec<u32> = (2..80).collect();
    session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
    let before = held(&mut session);
    let (recipe, caches) = (session.recipe().clone(), session.state().caches().to_vec());
    for some in [0, 1, 3] {
        left.store(some, Ordering::Relaxed);
        let e = session.set("layers.*.kv_cache=f32").unwrap_err();
        assert!(e.to_string().starts_with("not enough memory: a component"), "{e}");
        assert_eq!(
            (session.recipe(), session.state().caches()),
            (&recipe, &caches[..]),
            "after {some}"
        );
        // bf16 to f32 and back loses nothing.
        assert_eq!(held(&mut session), before, "after {some}");
    }
    session.feed(&[5], None, &Cancel::default(), &mut ()).unwrap();
    left.store(usize::MAX, Ordering::Relaxed);
    assert!(session.set("layers.*.kv_cache=f32").unwrap().converted > 3);
}
