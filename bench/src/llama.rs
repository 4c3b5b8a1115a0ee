//! llama.cpp through its C interface: the few calls that loading, prefill and greedy decoding need.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::time::Instant;

use llama_cpp_sys_2 as sys;

use crate::runner::{Result, Runner};

/// A model and a context on it. Both are freed on drop, the context first.
struct Llama {
    context: NonNull<sys::llama_context>,
    model: NonNull<sys::llama_model>,
    vocabulary: u32,
}

/// Drops llama.cpp's messages below the level of an error.
unsafe extern "C" fn log_errors(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if level == sys::GGML_LOG_LEVEL_ERROR {
        // SAFETY: llama.cpp passes a NUL-terminated string that lives for the call.
        let text = unsafe { CStr::from_ptr(text) };
        eprint!("llama.cpp: {}", text.to_string_lossy());
    }
}

/// Loads with llama.cpp's own defaults: memory map, weights repacked for the CPU, flash attention where it thinks best,
/// f16 KV cache, 512 tokens a step.
pub fn load(path: &Path, threads: usize, context: usize) -> Result<Box<dyn Runner>> {
    let file = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    let threads = i32::try_from(threads).map_err(|e| e.to_string())?;
    // SAFETY: the callback matches the type that llama.cpp asks for and uses no user data.
    unsafe { sys::llama_log_set(Some(log_errors), std::ptr::null_mut()) };
    // SAFETY: no preconditions; may be called more than once.
    unsafe { sys::llama_backend_init() };
    // SAFETY: no preconditions; returns a plain struct.
    let model_params = unsafe { sys::llama_model_default_params() };
    // SAFETY: `file` is a NUL-terminated string that outlives the call.
    let model = unsafe { sys::llama_model_load_from_file(file.as_ptr(), model_params) };
    let model = NonNull::new(model).ok_or_else(|| format!("llama.cpp cannot load {}", path.display()))?;

    // SAFETY: no preconditions; returns a plain struct.
    let mut params = unsafe { sys::llama_context_default_params() };
    params.n_ctx = u32::try_from(context).map_err(|e| e.to_string())?;
    params.n_threads = threads;
    params.n_threads_batch = threads;
    params.no_perf = true;
    // SAFETY: `model` is valid and outlives the context (see `Drop`).
    let context = unsafe { sys::llama_init_from_model(model.as_ptr(), params) };
    let Some(context) = NonNull::new(context) else {
        // SAFETY: nothing else holds the model.
        unsafe { sys::llama_model_free(model.as_ptr()) };
        return Err(format!("llama.cpp cannot make a context for {}", path.display()));
    };
    // SAFETY: the vocabulary belongs to the model, which is valid.
    let vocabulary = unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model.as_ptr())) };
    let vocabulary = u32::try_from(vocabulary).map_err(|e| e.to_string())?;
    Ok(Box::new(Llama {
        context,
        model,
        vocabulary,
    }))
}

impl Llama {
    fn clear(&mut self) {
        // SAFETY: the context is valid; only the positions are forgotten.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), false) };
    }

    /// Runs the tokens and waits for the logits of the last one.
    fn step(&mut self, tokens: &mut [sys::llama_token]) -> Result<()> {
        let count = i32::try_from(tokens.len()).map_err(|e| e.to_string())?;
        // SAFETY: the batch points at `tokens`, which outlives the call; ids are below the vocabulary (checked by `token`).
        let status = unsafe {
            let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), count);
            sys::llama_decode(self.context.as_ptr(), batch)
        };
        // SAFETY: the context is valid.
        unsafe { sys::llama_synchronize(self.context.as_ptr()) };
        if status == 0 {
            Ok(())
        } else {
            Err(format!("llama_decode answered {status}"))
        }
    }

    /// The most likely next token.
    fn most_likely(&mut self) -> Result<sys::llama_token> {
        // SAFETY: -1 names the last logits of the step before; they are `vocabulary` floats, valid until the next step.
        let logits = unsafe {
            let logits = sys::llama_get_logits_ith(self.context.as_ptr(), -1);
            if logits.is_null() {
                return Err("llama.cpp has no logits".into());
            }
            std::slice::from_raw_parts(logits, self.vocabulary as usize)
        };
        let (mut best, mut best_logit) = (0, f32::NEG_INFINITY);
        for (id, &logit) in (0..).zip(logits) {
            if logit > best_logit {
                (best, best_logit) = (id, logit);
            }
        }
        Ok(best)
    }

    fn token(&self, id: u32) -> Result<sys::llama_token> {
        if id >= self.vocabulary {
            return Err(format!("token {id} is outside the vocabulary of {}", self.vocabulary));
        }
        i32::try_from(id).map_err(|e| e.to_string())
    }
}

impl Runner for Llama {
    fn name(&self) -> String {
        "llama.cpp".into()
    }

    fn features(&self) -> String {
        // SAFETY: returns a string that llama.cpp keeps.
        let text = unsafe { CStr::from_ptr(sys::llama_print_system_info()) };
        let text = text.to_string_lossy();
        let on = text
            .split(['|', ':'])
            .filter_map(|part| part.trim().strip_suffix(" = 1"));
        on.collect::<Vec<_>>().join(" ")
    }

    fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    fn prefill(&mut self, ids: &[u32]) -> Result<f64> {
        let mut tokens = ids.iter().map(|&id| self.token(id)).collect::<Result<Vec<_>>>()?;
        self.clear();
        let start = Instant::now();
        self.step(&mut tokens)?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn decode(&mut self, first: u32, steps: usize) -> Result<f64> {
        let mut token = self.token(first)?;
        self.clear();
        let start = Instant::now();
        for _ in 0..steps {
            self.step(&mut [token])?;
            token = self.most_likely()?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let length = i32::try_from(text.len()).map_err(|e| e.to_string())?;
        let mut ids: Vec<sys::llama_token> = vec![0; text.len() + 8];
        let room = i32::try_from(ids.len()).map_err(|e| e.to_string())?;
        // SAFETY: the vocabulary belongs to the model, which is valid; both buffers have the lengths given.
        let count = unsafe {
            let vocabulary = sys::llama_model_get_vocab(self.model.as_ptr());
            sys::llama_tokenize(vocabulary, text.as_ptr().cast(), length, ids.as_mut_ptr(), room, true, true)
        };
        let count = usize::try_from(count).map_err(|_| format!("llama_tokenize answered {count}"))?;
        ids.truncate(count);
        ids.into_iter().map(|id| u32::try_from(id).map_err(|e| e.to_string())).collect()
    }

    fn greedy(&mut self, ids: &[u32], steps: usize) -> Result<Vec<u32>> {
        let mut tokens = ids.iter().map(|&id| self.token(id)).collect::<Result<Vec<_>>>()?;
        self.clear();
        self.step(&mut tokens)?;
        let mut out = vec![self.most_likely()?];
        while out.len() < steps {
            self.step(&mut [out[out.len() - 1]])?;
            out.push(self.most_likely()?);
        }
        out.into_iter().map(|id| u32::try_from(id).map_err(|e| e.to_string())).collect()
    }
}

impl Drop for Llama {
    fn drop(&mut self) {
        // SAFETY: both were made by llama.cpp, are freed once, the context before the model it points at.
        unsafe {
            sys::llama_free(self.context.as_ptr());
            sys::llama_model_free(self.model.as_ptr());
        }
    }
}
