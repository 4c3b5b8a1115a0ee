//! Our engine, through its public interface.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use engine::{Cancel, Engine, EngineOptions, SamplerParams, Session, SessionOptions, Silent};

use crate::runner::{Result, Runner};

struct Ours {
    engine: Arc<Engine>,
    session: Session,
}

/// Loads with the engine's own defaults.
pub fn load(path: &Path, threads: usize, context: usize) -> Result<Box<dyn Runner>> {
    let options = EngineOptions {
        threads: Some(threads),
        prefault: true,
        ..EngineOptions::default()
    };
    let engine = Engine::open(path, &options, &Silent).map_err(|e| e.to_string())?;
    let options = SessionOptions {
        context: Some(context as u64),
        ..SessionOptions::default()
    };
    let session = engine.session(engine.recipe(), options).map_err(|e| e.to_string())?;
    Ok(Box::new(Ours { engine, session }))
}

impl Ours {
    fn feed(&mut self, ids: &[u32]) -> Result<u32> {
        let greedy = SamplerParams::default();
        self.session
            .feed(ids, Some(&greedy), &Cancel::default(), &mut ())
            .map_err(|e| e.to_string())?;
        let drawn = self.session.sampled().ok_or("no token was drawn")?;
        Ok(drawn.token)
    }

    fn clear(&mut self) -> Result<()> {
        self.session.truncate(0, &Cancel::default()).map_err(|e| e.to_string())
    }
}

impl Runner for Ours {
    fn name(&self) -> String {
        "model1".into()
    }

    fn features(&self) -> String {
        self.engine.backend().describe()
    }

    fn vocabulary(&self) -> u32 {
        self.engine.facts().vocab as u32
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<f64> {
        self.clear()?;
        let start = Instant::now();
        self.feed(ids)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn decode(&mut self, first: u32, steps: usize) -> Result<f64> {
        self.clear()?;
        let mut token = first;
        let start = Instant::now();
        for _ in 0..steps {
            token = self.feed(&[token])?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let tokenizer = self.engine.tokenizer().map_err(|e| e.to_string())?;
        tokenizer.encode(text, true).map_err(|e| e.to_string())
    }

    fn greedy(&mut self, ids: &[u32], steps: usize) -> Result<Vec<u32>> {
        self.clear()?;
        let mut out = vec![self.feed(ids)?];
        while out.len() < steps {
            let next = self.feed(&out[out.len() - 1..])?;
            out.push(next);
        }
        Ok(out)
    }
}
