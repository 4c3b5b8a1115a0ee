//! Timing prefill and decode.
//!
//! Definitions are llama-bench's: `ppN` is a prompt of N tokens read as a whole, `tgN` is N tokens decoded one at a time,
//! ` @ dN` after N tokens that are in the context already and are not timed. Token ids of prompts are random. Differences: a
//! decoded token is drawn here as well (greedily) and is the next one's input, as where a text is written, so that a device can
//! begin with it before it was read; and the warm-up makes room for caches. ` bN` decodes N sequences together, a token
//! of each per step; tokens per second are those of all.

use std::sync::Arc;
use std::time::Instant;

use kernels::cuda::need;
use kernels::ir::{Cost, SamplerParams, StepOutput};
use protocol::StepRecord;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::memory;
use crate::recipe::Recipe;
use crate::session::{Part, Session, SessionOptions};
use crate::watch::Watch;

/// Tokens the CPU decodes to warm up.
const CPU_WARM: u64 = 8;
/// Passes a device warms up with: a plan's first run launches its ops one by one, the second captures them.
const DEVICE_PASSES: u64 = 3;
/// Most positions a cost is averaged over.
const POSITIONS: u64 = 64;

/// What is done with the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A prompt of this many tokens is read.
    Prompt(u64),
    /// This many tokens are decoded, one at a time.
    Generate(u64),
}

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// The timed tokens.
    pub work: Work,
    /// Tokens in the context before them.
    pub depth: u64,
    /// Sequences that are decoded together; 1 for prompts.
    pub sequences: usize,
}

impl Test {
    /// All combinations, for each depth prompts first, and decoding for each number of sequences; 0 tokens and 0 sequences are
    /// left out.
    pub fn all(prompts: &[u64], generates: &[u64], depths: &[u64], batches: &[usize]) -> Vec<Test> {
        let prompts = prompts.iter().map(|&n| (Work::Prompt(n), 1));
        let generates = generates.iter().map(|&n| Work::Generate(n));
        let generates = generates.flat_map(|work| batches.iter().map(move |&n| (work, n)));
        let works: Vec<(Work, usize)> = prompts.chain(generates).collect();
        let tests = depths.iter().flat_map(|&depth| {
            works
                .iter()
                .map(move |&(work, sequences)| Test { work, depth, sequences })
        });
        tests.filter(|t| t.tokens() > 0 && t.sequences > 0).collect()
    }

    /// Timed tokens of each sequence.
    pub fn tokens(&self) -> u64 {
        match self.work {
            Work::Prompt(n) | Work::Generate(n) => n,
        }
    }

    /// Timed tokens of all sequences.
    pub fn all_tokens(&self) -> u64 {
        self.tokens().saturating_mul(self.sequences as u64)
    }

    /// Tokens in the context at the end; `None` if no number holds that.
    pub fn context(&self) -> Option<u64> {
        self.depth.checked_add(self.tokens())
    }

    /// `pp512`, `tg128`, `tg128 @ d4096`, as llama-bench has it; `tg128 b4` for four sequences.
    pub fn name(&self) -> String {
        let work = match self.work {
            Work::Prompt(n) => format!("pp{n}"),
            Work::Generate(n) => format!("tg{n}"),
        };
        let work = match self.sequences {
            1 => work,
            n => format!("{work} b{n}"),
        };
        match self.depth {
            0 => work,
            d => format!("{work} @ d{d}"),
        }
    }

    /// Refuses what a context of `most` tokens does not hold.
    ///
    /// # Errors
    /// [`EngineError::Invalid`].
    pub fn check(&self, most: u64) -> Result<(), EngineError> {
        match self.context() {
            Some(n) if n <= most => Ok(()),
            n => Err(EngineError::Invalid(format!(
                "test {}: found {} tokens in the context, accepted: at most {most}, what the model was made for",
                self.name(),
                n.map_or("far too many".into(), |n| n.to_string())
            ))),
        }
    }
}

/// What a test gave. Times and memory are measured, bytes and FLOPs estimated by the plan, the cache predicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The test.
    pub test: Test,
    /// Nanoseconds of each repetition.
    pub nanos: Vec<u64>,
    /// Weight and cache bytes that one decoded token reads, mean over the test's positions, its share of the weights where
    /// several sequences go together; `None` for prompts, whose tokens share what is read.
    pub bytes_per_token: Option<u64>,
    /// Floating-point operations per token.
    pub flops_per_token: u64,
    /// Cache bytes at the end of the test, of all sequences.
    pub kv_bytes: u64,
    /// Weights, cache and working memory together.
    pub memory_predicted: u64,
    /// Most memory in use: of the process, or on the device since `idle`; `None` where that is not known.
    pub peak_memory: Option<u64>,
    /// Why sequences were not decoded in one step for all.
    pub apart: Option<String>,
}

impl Measured {
    /// Tokens per second of each repetition, of all sequences.
    pub fn speeds(&self) -> Vec<f64> {
        let speed = |&ns: &u64| self.test.all_tokens() as f64 * 1e9 / ns.max(1) as f64;
        self.nanos.iter().map(speed).collect()
    }

    /// Mean and standard deviation of tokens per second.
    pub fn speed(&self) -> (f64, f64) {
        mean_sd(&self.speeds())
    }

    /// Bytes per second that decoding reads; `None` for prompts.
    pub fn reads(&self) -> Option<f64> {
        self.bytes_per_token.map(|b| b as f64 * self.speed().0)
    }
}

/// Mean and sample standard deviation (n - 1); 0 for a single value.
pub fn mean_sd(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

/// A model under a recipe whose speed is measured.
pub struct Bench {
    engine: Arc<Engine>,
    recipe: Recipe,
    read_bandwidth: Option<f64>,
    /// Bytes used on the device before the model's weights went there.
    idle: Option<u64>,
}

impl Bench {
    /// Measures the memory's speed first. `engine` has not run yet, so that its device holds no weights.
    ///
    /// # Errors
    /// A device that fails, a recipe that does not fit.
    pub fn new(engine: &Arc<Engine>, recipe: Recipe) -> Result<Self, EngineError> {
        recipe.check(engine.facts(), engine.registry())?;
        let idle = used(engine)?;
        // Where memory is scarce, the yardstick is not worth what it takes.
        let room = memory::available().is_none_or(|left| left / 2 > kernels::cpu::measure::read_bytes() as u64);
        let read_bandwidth = if idle.is_some() || room {
            engine.backend().read_bandwidth()?
        } else {
            None
        };
        Ok(Self {
            engine: engine.clone(),
            recipe,
            read_bandwidth,
            idle,
        })
    }

    /// Bytes per second of reading the memory weights lie in, measured; `None` where it could not be.
    pub fn read_bandwidth(&self) -> Option<f64> {
        self.read_bandwidth
    }

    /// Passes before those that are timed.
    pub fn warm_up(&self) -> u64 {
        if self.on_device() { DEVICE_PASSES } else { 1 }
    }

    fn on_device(&self) -> bool {
        self.engine.backend().name() != "cpu"
    }

    /// Runs a test. Progress counts tokens.
    ///
    /// # Errors
    /// A context or memory that is too small, [`EngineError::Cancelled`], a failed step.
    pub fn run(&self, test: Test, repetitions: usize, watch: &mut Watch<'_>) -> Result<Measured, EngineError> {
        test.check(self.engine.facts().max_context as u64)?;
        let resettable = memory::reset_peak();
        let (n, b) = (test.tokens(), test.sequences as u64);
        let options = SessionOptions {
            context: test.context(),
            ..SessionOptions::default()
        };
        let session = || self.engine.session(self.recipe.clone(), options.clone());
        let mut sessions = (0..test.sequences.max(1))
            .map(|_| session())
            .collect::<Result<Vec<_>, _>>()?;
        let kv_bytes = b * sessions[0].predicted_bytes(test.depth + n);
        self.engine.require(
            kv_bytes,
            &format!("the KV cache of {b} x {} tokens", test.depth + n),
            "use fewer sequences, a smaller depth or a smaller --kv-cache format",
        )?;
        let memory_predicted = self.predicted(&mut sessions[0], test, kv_bytes);
        let warm = match test.work {
            Work::Prompt(n) => self.warm_up() * n,
            Work::Generate(n) if self.on_device() => n + self.warm_up() * n,
            Work::Generate(n) => n + n.min(CPU_WARM),
        };
        let mut run = Run {
            ids: Ids(1),
            vocab: self.engine.facts().vocab.max(1) as u64,
            done: 0,
            total: b * (test.depth + warm + n * repetitions as u64),
            apart: None,
            watch,
        };
        for session in &mut sessions {
            run.prompt(session, test.depth)?;
        }
        self.warm(&mut run, &mut sessions, test)?;
        let mut nanos = Vec::with_capacity(repetitions);
        let mut peak = None;
        for _ in 0..repetitions {
            run.back_to(&mut sessions, test.depth)?;
            let ids = run.draw(n * b);
            let start = Instant::now();
            match test.work {
                Work::Prompt(_) => run.feed(&mut sessions[0], &ids)?,
                Work::Generate(_) => run.decode(&mut sessions, &ids)?,
            }
            nanos.push(start.elapsed().as_nanos() as u64);
            peak = peak.max(used(&self.engine)?);
        }
        let apart = run.apart.take();
        let session = &mut sessions[0];
        let peak_memory = match self.idle {
            Some(idle) => peak.map(|p: u64| p.saturating_sub(idle)),
            None => memory::peak().filter(|_| resettable),
        };
        let cost = cost(session, test);
        Ok(Measured {
            test,
            nanos,
            bytes_per_token: matches!(test.work, Work::Generate(_)).then_some((cost.weights / b + cost.cache) / n),
            flops_per_token: cost.flops / n,
            kv_bytes,
            memory_predicted,
            peak_memory,
            apart,
        })
    }

    /// Weights, cache and working memory together; on a device as they are allocated there.
    fn predicted(&self, session: &mut Session, test: Test, kv_bytes: u64) -> u64 {
        let workspace = self.workspace(session, test);
        if self.on_device() {
            let weights = need::of_weights(&session.plan(1, test.depth));
            let caches = need::of_caches(session.state().caches(), test.depth + test.tokens());
            return weights + test.sequences as u64 * caches + workspace;
        }
        self.engine.weight_bytes() + self.engine.restored_bytes(session.recipe()) + kv_bytes + workspace
    }

    /// Working memory of the largest step of a test: of those that fill the context before it, and its own (a test that
    /// generates is also read as a prompt once).
    fn workspace(&self, session: &mut Session, test: Test) -> u64 {
        let chunk = session.chunk_len() as u64;
        let (n, before) = (test.tokens().min(chunk), test.depth.min(chunk));
        let mut steps = vec![(n, test.depth), (1, test.depth + test.tokens() - 1)];
        if before > 0 {
            steps.push((before, test.depth - before));
        }
        let of = |(tokens, at): (u64, u64)| {
            let plan = session.plan(tokens as usize, at);
            if self.on_device() {
                let most = self.engine.backend().batch();
                let together = tokens == 1 && test.sequences > 1 && most > 1;
                need::of_step(&plan, if together { most } else { 1 })
            } else {
                plan.workspace_bytes()
            }
        };
        steps.into_iter().map(of).max().unwrap_or(0)
    }

    /// Makes room for the whole test, so that no cache grows while it is timed, and runs every plan often enough that its
    /// graph is there.
    fn warm(&self, run: &mut Run<'_, '_>, sessions: &mut [Session], test: Test) -> Result<(), EngineError> {
        let n = test.tokens();
        if let Work::Generate(_) = test.work {
            for session in sessions.iter_mut() {
                run.prompt(session, n)?;
            }
        }
        for _ in 0..self.warm_up() {
            run.back_to(sessions, test.depth)?;
            match test.work {
                Work::Prompt(_) => run.prompt(&mut sessions[0], n)?,
                Work::Generate(_) => {
                    let each = if self.on_device() { n } else { n.min(CPU_WARM) };
                    let ids = run.draw(each * sessions.len() as u64);
                    run.decode(sessions, &ids)?;
                }
            }
        }
        Ok(())
    }
}

/// Bytes in use on the engine's device; `None` if it has no memory of its own.
fn used(engine: &Engine) -> Result<Option<u64>, EngineError> {
    let memory = engine.backend().device_memory()?;
    Ok(memory.map(|(free, total)| total.saturating_sub(free)))
}

/// What the timed tokens cost together.
fn cost(session: &mut Session, test: Test) -> Cost {
    let mut sum = Cost::default();
    let (end, chunk) = (test.depth + test.tokens(), session.chunk_len() as u64);
    let mut add = |tokens: u64, at: u64, times: u64| {
        let plan = session.plan(tokens as usize, at);
        for op in &plan.ops {
            let c = op.cost(&plan, tokens, at);
            sum.flops += times * c.flops;
            // Sequences choose experts of their own: as many as that many tokens of one do.
            let together = (test.sequences > 1).then(|| op.cost(&plan, test.sequences as u64, at).weights);
            sum.weights += times * together.unwrap_or(c.weights);
            sum.cache += times * c.cache;
        }
    };
    match test.work {
        Work::Prompt(_) => {
            let mut at = test.depth;
            while at < end {
                let n = (chunk - at % chunk).min(end - at);
                add(n, at, 1);
                at += n;
            }
        }
        Work::Generate(n) => {
            // Costs change slowly: each of some positions stands for its neighbours.
            let parts = n.min(POSITIONS);
            for i in 0..parts {
                let (first, next) = (i * n / parts, (i + 1) * n / parts);
                add(1, test.depth + (first + next) / 2, next - first);
            }
        }
    }
    sum
}

/// Random token ids: splitmix64.
struct Ids(u64);

impl Ids {
    fn next(&mut self, vocab: u64) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % vocab) as u32
    }
}

/// Tokens going through a session, counted.
struct Run<'a, 'w> {
    ids: Ids,
    vocab: u64,
    done: u64,
    total: u64,
    /// Why sequences did not go together.
    apart: Option<String>,
    watch: &'a mut Watch<'w>,
}

impl Run<'_, '_> {
    fn draw(&mut self, n: u64) -> Vec<u32> {
        (0..n).map(|_| self.ids.next(self.vocab)).collect()
    }

    /// Random tokens as a prompt.
    fn prompt(&mut self, session: &mut Session, n: u64) -> Result<(), EngineError> {
        let ids = self.draw(n);
        if ids.is_empty() {
            Ok(())
        } else {
            self.feed(session, &ids)
        }
    }

    fn feed(&mut self, session: &mut Session, ids: &[u32]) -> Result<(), EngineError> {
        let Watch { cancel, progress } = &mut *self.watch;
        let (done, total) = (&mut self.done, self.total);
        session.feed(ids, None, cancel, &mut |r: &StepRecord, _: &StepOutput| {
            *done += u64::from(r.tokens);
            progress(*done, total);
        })
    }

    fn back_to(&mut self, sessions: &mut [Session], depth: u64) -> Result<(), EngineError> {
        let all = sessions.iter_mut();
        all.into_iter().try_for_each(|s| s.truncate(depth, self.watch.cancel))
    }

    /// One of each session at a time, each with a draw. A session by itself goes on with what it drew, as a text does; what several
    /// draw is not fed back: with random weights they would soon all draw the same.
    fn decode(&mut self, sessions: &mut [Session], ids: &[u32]) -> Result<(), EngineError> {
        let sampler = SamplerParams::default();
        let steps = ids.len() / sessions.len();
        for (i, step) in ids.chunks(sessions.len()).enumerate() {
            if let ([session], [id]) = (&mut *sessions, step) {
                let drawn = session.sampled().filter(|_| i > 0).map(|s| s.token);
                session.go_on(
                    drawn.unwrap_or(*id),
                    &sampler,
                    i + 1 == steps,
                    self.watch.cancel,
                    &mut (),
                )?;
            } else {
                let each = sessions.iter_mut().zip(step);
                let mut parts: Vec<Part<'_>> = each
                    .map(|(session, &token)| Part {
                        session,
                        token,
                        sampler: Some(&sampler),
                    })
                    .collect();
                self.apart = Session::step_together(&mut parts, self.watch.cancel, &mut |_, _, _| ())?;
            }
            self.done += step.len() as u64;
            (self.watch.progress)(self.done, self.total);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cancel;
    use crate::families::CHUNK;

    fn bench(golden: &str) -> Bench {
        let engine = crate::goldens::engine(golden);
        Bench::new(&engine, engine.recipe()).unwrap()
    }

    fn run(bench: &Bench, work: Work, depth: u64, sequences: usize) -> Measured {
        let cancel = Cancel::default();
        let mut seen = (0, 0);
        let mut watch = Watch {
            cancel: &cancel,
            progress: &mut |done, total| seen = (done, total),
        };
        let test = Test { work, depth, sequences };
        let found = bench.run(test, 3, &mut watch).unwrap();
        assert_eq!(seen.0, seen.1, "all tokens were announced and done");
        found
    }

    #[test]
    fn names_and_combinations_are_llama_benchs() {
        let names = |batches: &[usize]| -> Vec<String> {
            let all = Test::all(&[512, 0], &[128], &[0, 4096], batches);
            all.iter().map(Test::name).collect()
        };
        assert_eq!(names(&[1]), ["pp512", "tg128", "pp512 @ d4096", "tg128 @ d4096"]);
        let two = [
            "pp512",
            "tg128",
            "tg128 b4",
            "pp512 @ d4096",
            "tg128 @ d4096",
            "tg128 b4 @ d4096",
        ];
        assert_eq!(names(&[1, 0, 4]), two);
        assert_eq!(mean_sd(&[1.0, 2.0, 3.0, 6.0]), (3.0, (14.0f64 / 3.0).sqrt()));
        assert_eq!(mean_sd(&[5.0]), (5.0, 0.0));
    }

    #[test]
    fn a_row_says_what_the_engine_says() {
        for golden in ["tiny-v4-fp8", "tiny-llama"] {
            let bench = bench(golden);
            let depth = 5;
            let row = run(&bench, Work::Generate(4), depth, 1);
            assert!(row.nanos.len() == 3 && row.nanos.iter().all(|&n| n > 0));
            let (mean, sd) = row.speed();
            assert!(mean > 0.0 && sd >= 0.0);
            let mut s = bench
                .engine
                .session(bench.recipe.clone(), SessionOptions::default())
                .unwrap();
            assert_eq!(row.kv_bytes, s.predicted_bytes(9));
            let mut bytes = 0;
            for at in 5..9 {
                let plan = s.plan(1, at);
                let costs = plan.ops.iter().map(|o| o.cost(&plan, 1, at));
                bytes += costs.map(|c| c.weights + c.cache).sum::<u64>();
            }
            assert_eq!(row.bytes_per_token, Some(bytes / 4));
            assert!(row.memory_predicted > bench.engine.weight_bytes() + row.kv_bytes);
            assert!(row.peak_memory.is_none_or(|p| p > 1 << 20));
            assert!(bench.read_bandwidth().is_none_or(|b| b > 0.0));
            let prompt = run(&bench, Work::Prompt(9), 0, 1);
            assert_eq!((prompt.bytes_per_token, prompt.reads()), (None, None));
            assert!(prompt.flops_per_token > 0);
        }
    }

    #[test]
    fn depths_across_chunks() {
        let bench = bench("tiny-llama");
        let most = bench.engine.facts().max_context as u64;
        let depth = (CHUNK as u64 + 2).min(most - 4);
        run(&bench, Work::Prompt(3), depth, 1);
        run(&bench, Work::Generate(3), depth, 1);
    }

    /// A backend without steps of several sequences takes them one after the other, and the row says so.
    #[test]
    fn several_sequences() {
        for golden in ["tiny-v4-fp8", "tiny-llama"] {
            let bench = bench(golden);
            let (one, three) = (
                run(&bench, Work::Generate(4), 5, 1),
                run(&bench, Work::Generate(4), 5, 3),
            );
            assert_eq!((one.test.all_tokens(), three.test.all_tokens()), (4, 12));
            assert_eq!(three.kv_bytes, 3 * one.kv_bytes);
            assert!(three.bytes_per_token < one.bytes_per_token, "{golden}");
            assert!(three.memory_predicted > one.memory_predicted);
            assert_eq!(one.apart, None);
            assert!(three.apart.as_ref().unwrap().contains("one sequence at a time"));
            let speeds: Vec<f64> = three.nanos.iter().map(|&ns| 12e9 / ns as f64).collect();
            assert_eq!(three.speeds(), speeds);
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_and_what_runs_can_be_stopped() {
        let bench = bench("tiny-v4");
        let cancel = Cancel::default();
        let mut count = 0;
        let test = |depth| Test {
            work: Work::Generate(40),
            depth,
            sequences: 1,
        };
        let mut watch = Watch {
            cancel: &cancel,
            progress: &mut |_, _| {
                count += 1;
                if count == 20 {
                    cancel.cancel();
                }
            },
        };
        for depth in [1 << 40, u64::MAX] {
            let e = bench.run(test(depth), 1, &mut watch).unwrap_err().to_string();
            assert!(e.contains("tokens in the context, accepted: at most"), "{e}");
        }
        let ended = bench.run(test(2), 5, &mut watch);
        assert!(matches!(ended, Err(EngineError::Cancelled)), "{ended:?}");
        assert_eq!(count, 20);
    }
}
