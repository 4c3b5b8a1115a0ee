//! Choosing the device a model runs on.

use std::sync::Arc;

use kernels::cpu::exec::CpuBackend;
use kernels::cuda::device::Device;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::Backend;

use crate::error::EngineError;
use crate::memory::human;

/// Devices that can be named.
pub const DEVICES: &str = "auto, cpu, cuda, cuda:N";
/// Bytes kept free on a GPU beside weights: caches, activations, the driver's own.
const ROOM: u64 = 1 << 30;

/// The backend for a device, and what to tell the user about the choice.
pub struct Chosen {
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Why the GPU that is there is not used.
    pub warning: Option<String>,
}

/// The backend `device` names, for a model whose weights take `weight_bytes` bytes. `auto` is the GPU if there is one this
/// program can use and the model fits, the CPU otherwise; `cuda` insists.
pub fn choose(device: &str, threads: usize, weight_bytes: u64) -> Result<Chosen, EngineError> {
    let fits = |(free, total, name): (u64, u64, &str)| {
        if weight_bytes + ROOM <= free {
            return Ok(());
        }
        Err(format!(
            "the weights take {}, {} of {} on {name} are free, and {} beside the weights are needed",
            human(weight_bytes),
            human(free),
            human(total),
            human(ROOM)
        ))
    };
    choose_if(device, threads, &fits, &kernels::cuda::open)
}

/// Says whether a model fits a device: (free, all) bytes of its memory, its name.
pub(crate) type Fits<'a> = dyn Fn((u64, u64, &str)) -> Result<(), String> + 'a;

/// Opens GPU `ordinal`, or says in a sentence why not (see [`kernels::cuda::open`]).
pub type OpenGpu<'a> = dyn Fn(usize) -> Result<Arc<dyn Device>, String> + 'a;

/// As [`choose`], for a model that fits where `fits` says so, on GPUs that `gpus` opens.
pub(crate) fn choose_if(
    device: &str,
    threads: usize,
    fits: &Fits<'_>,
    gpus: &OpenGpu<'_>,
) -> Result<Chosen, EngineError> {
    let cpu = |warning| Chosen {
        backend: Arc::new(CpuBackend::new(threads)),
        warning,
    };
    let number = |s: &str| s.parse::<usize>().ok().filter(|n| *n < 64);
    match device {
        "cpu" => Ok(cpu(None)),
        "auto" => match gpu(0, fits, gpus) {
            Ok(backend) => Ok(Chosen { backend, warning: None }),
            Err(why) => Ok(cpu(
                (kernels::cuda::built() && present()).then(|| format!("the GPU is not used: {why}"))
            )),
        },
        _ => {
            let ordinal = match device.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(number),
                None => None,
            };
            let Some(ordinal) = ordinal else {
                return Err(EngineError::Invalid(format!(
                    "--device: found `{device}`, accepted: {DEVICES} (see `model1 devices`)"
                )));
            };
            let backend = gpu(ordinal, fits, gpus).map_err(|why| {
                EngineError::Invalid(format!("--device {device}: {why}; --device cpu works everywhere"))
            })?;
            Ok(Chosen { backend, warning: None })
        }
    }
}

/// Whether `device` names a GPU, or leaves it to what there is and there may be one.
pub(crate) fn may_be_gpu(device: &str) -> bool {
    device.starts_with("cuda") || (device == "auto" && kernels::cuda::built() && present())
}

/// Whether the machine has an NVIDIA GPU with a driver.
fn present() -> bool {
    ["/dev/nvidiactl", "/proc/driver/nvidia/version"]
        .iter()
        .any(|p| std::path::Path::new(p).exists())
}

/// GPU `ordinal` as a backend, if it has room.
fn gpu(ordinal: usize, fits: &Fits<'_>, gpus: &OpenGpu<'_>) -> Result<Arc<dyn Backend>, String> {
    let device = gpus(ordinal)?;
    let (free, total) = device.memory().map_err(|e| e.to_string())?;
    fits((free, total, &device.info().name))?;
    Ok(Arc::new(Cuda::on(device, CudaOptions::default())))
}

/// What there is: (name, description or why it cannot be used, usable).
pub fn list() -> Vec<(String, String, bool)> {
    let mut out = Vec::new();
    loop {
        let i = out.len();
        let name = if i == 0 {
            "cuda".to_string()
        } else {
            format!("cuda:{i}")
        };
        match kernels::cuda::open(i) {
            Ok(device) => {
                let free = device.memory().map_or(0, |m| m.0);
                let backend = Cuda::on(device, CudaOptions::default());
                out.push((name, format!("{}, {} free", backend.describe(), human(free)), true));
            }
            Err(why) if i == 0 => return vec![(name, why, false)],
            Err(_) => return out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for bad in ["gpu", "cuda:", "cuda:x", "cuda:99", "CPU"] {
            let e = choose(bad, 1, 0).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(e.contains("accepted: auto, cpu, cuda"), "{bad}: {e}");
        }
        assert_eq!(choose("cpu", 1, 0).unwrap().backend.name(), "cpu");
    }

    #[test]
    fn a_gpu_that_is_too_small_is_said_to_be() {
        // No GPU has this much; without one the message names what is missing.
        let e = choose("cuda", 1, u64::MAX / 2)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        assert!(e.contains("--device cpu works everywhere"), "{e}");
        assert_eq!(choose("auto", 1, u64::MAX / 2).unwrap().backend.name(), "cpu");
    }
}
