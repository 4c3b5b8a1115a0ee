//! Launches that are the same for several sequences but for where things lie, made one.

use bytemuck::{Pod, Zeroable};

use super::SEQUENCES;
use crate::cuda::cx::{ARRIVALS, Noted};
use crate::cuda::device::{Arg, DevPtr, Device, Launch};
use crate::ir::ExecError;

/// The form of a kernel for several sequences.
struct EachKernel {
    name: &'static str,
    /// Which of the grid's numbers is the sequence's; it is 1 in a launch for one, but for those with a table.
    axis: usize,
    /// Structs are too long to come with the launch: they lie in a table.
    table: bool,
    /// It works in memory that launches beside it may use, too.
    alone: bool,
}

fn each_kernel(kernel: &str) -> Option<EachKernel> {
    let form = |name, axis, table, alone| EachKernel {
        name,
        axis,
        table,
        alone,
    };
    macro_rules! forms {
        ($($name:literal: $axis:literal, $alone:literal;)*) => {
            match kernel {
                "row_chain" => Some(form("row_chain_each", 0, true, false)),
                $($name => Some(form(concat!($name, "_each"), $axis, false, $alone)),)*
                _ => None,
            }
        };
    }
    forms! {
        "attend_keys_64x1_f32": 0, true;
        "attend_keys_64x1_bf16": 0, true;
        "attend_keys_64x1_fp8": 0, true;
        "attend_keys_64x3_f32": 0, true;
        "attend_keys_64x3_bf16": 0, true;
        "attend_keys_64x3_fp8": 0, true;
        "attend_keys_128x1_f32": 0, true;
        "attend_keys_128x1_bf16": 0, true;
        "attend_keys_128x1_fp8": 0, true;
        "attend_keys_128x3_f32": 0, true;
        "attend_keys_128x3_bf16": 0, true;
        "attend_keys_128x3_fp8": 0, true;
        "attend_keys_512x2_f32": 0, true;
        "attend_keys_512x2_bf16": 0, true;
        "attend_keys_512x2_fp8": 0, true;
        "attend_near_512x2_bf16": 0, false;
        "attend_near_512x2_fp8": 0, false;
        "index_mma_bf16": 2, false;
        "index_mma_fp8": 2, false;
        "index_mma_fp4": 2, false;
        "select_near": 2, false;
        "select_top_k": 2, false;
        "select_held": 2, false;
        "sample_scan": 2, true;
        "sample_token": 2, true;
    }
}

/// `ChainEachArgs` of `src/chain.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ChainEachArgs {
    of: DevPtr,
    rows: u32,
    pad: u32,
}

/// A launch for all sequences.
pub(super) struct Joined {
    kernel: &'static str,
    grid: [u32; 3],
    block: u32,
    shared: usize,
    args: Vec<u8>,
    /// Where its structs lie in the table, if they do.
    table: Option<usize>,
    /// Nothing may run beside it that works in the same memory.
    pub alone: bool,
}

/// The launches of each of some sequences as launches for all; `None` where one of them cannot be. Structs that lie in a table
/// are put behind what is there.
pub(super) fn join(each: &[Vec<Noted>], table: &mut Vec<u8>) -> Option<Vec<Joined>> {
    let first = each.first().filter(|f| !f.is_empty())?;
    let alike = |a: &Noted, b: &Noted| {
        let of = |n: &Noted| (n.kernel, n.grid, n.block, n.shared, n.args.len());
        of(a) == of(b) && !a.args.is_empty()
    };
    let same = |all: &Vec<Noted>| all.len() == first.len() && all.iter().zip(first).all(|(a, b)| alike(a, b));
    if !each.iter().all(same) {
        return None;
    }
    let forms: Vec<EachKernel> = first.iter().map(|n| each_kernel(n.kernel)).collect::<Option<_>>()?;
    if forms.iter().zip(first).any(|(f, n)| !f.table && n.grid[f.axis] != 1) {
        return None;
    }
    // Blocks of attention count arrivals behind those of the sequences before.
    if forms
        .iter()
        .zip(first)
        .any(|(f, n)| f.alone && n.grid[1] as usize * each.len() > ARRIVALS)
    {
        return None;
    }
    let joined = forms.into_iter().zip(first).enumerate().map(|(i, (form, n))| {
        let structs = each.iter().flat_map(|all| all[i].args.iter().copied());
        let mut grid = n.grid;
        grid[form.axis] *= each.len() as u32;
        let (args, at) = if form.table {
            let at = table.len();
            table.extend(structs);
            // Words of 8 bytes are copied from there.
            table.resize(table.len().next_multiple_of(16), 0);
            let args = ChainEachArgs {
                of: 0,
                rows: n.grid[form.axis],
                pad: 0,
            };
            (bytemuck::bytes_of(&args).to_vec(), Some(at))
        } else {
            let mut args: Vec<u8> = structs.collect();
            args.resize(n.args.len() * SEQUENCES, 0);
            (args, None)
        };
        Joined {
            kernel: form.name,
            grid,
            block: n.block,
            shared: n.shared,
            args,
            table: at,
            alone: form.alone,
        }
    });
    Some(joined.collect())
}

impl Joined {
    /// The table lies there.
    pub fn place(&mut self, table: DevPtr) {
        if let Some(at) = self.table {
            self.args[..8].copy_from_slice(&(table + at as u64).to_le_bytes());
        }
    }

    /// Enqueues it.
    pub fn launch(&self, device: &dyn Device) -> Result<(), ExecError> {
        device.launch(&Launch {
            kernel: self.kernel,
            grid: self.grid,
            block: [self.block, 1, 1],
            shared: self.shared,
            early: true,
            apart: false,
            args: &[Arg::Struct(&self.args)],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(kernel: &'static str, grid: [u32; 3], byte: u8) -> Noted {
        Noted {
            kernel,
            grid,
            block: 256,
            shared: 4,
            args: vec![byte; 24],
        }
    }

    #[test]
    fn launches_that_are_alike_become_one() {
        let mut table = vec![7; 16];
        let of = |b: u8| vec![noted("row_chain", [2, 3, 1], b), noted("sample_scan", [64, 1, 1], b)];
        let mut joined = join(&[of(1), of(2), of(3)], &mut table).unwrap();
        assert_eq!(
            (joined[0].kernel, joined[0].grid, joined[0].alone),
            ("row_chain_each", [6, 3, 1], false)
        );
        assert_eq!(
            (joined[1].kernel, joined[1].grid, joined[1].alone),
            ("sample_scan_each", [64, 1, 3], true)
        );
        assert_eq!(
            (table.len(), table[16], table[40], table[64], table[88]),
            (96, 1, 2, 3, 0)
        );
        joined[0].place(4096);
        let args: ChainEachArgs = bytemuck::pod_read_unaligned(&joined[0].args);
        assert_eq!((args.of, args.rows), (4096 + 16, 2));
        assert_eq!(
            (joined[1].args.len(), joined[1].args[71], joined[1].args[72]),
            (24 * SEQUENCES, 3, 0)
        );
    }

    #[test]
    fn others_do_not() {
        let table = &mut Vec::new();
        let one = |kernel, grid| vec![noted(kernel, grid, 1)];
        assert!(join(&[], table).is_none() && join(&[vec![]], table).is_none());
        assert!(join(&[one("rope", [1, 1, 1])], table).is_none(), "no form for several");
        assert!(
            join(&[one("sample_scan", [1, 1, 2])], table).is_none(),
            "its place is taken"
        );
        let (a, b) = (one("select_top_k", [1, 1, 1]), one("select_top_k", [2, 1, 1]));
        assert!(join(&[a.clone(), b], table).is_none(), "other grids");
        assert!(join(&[a.clone(), vec![]], table).is_none());
        let heads = |n: u32| vec![one("attend_keys_64x1_f32", [1, n, 2]); 8];
        assert!(join(&heads(129), table).is_none() && join(&heads(128), table).is_some());
        assert!(join(&[a.clone(), a], table).is_some() && table.is_empty());
    }
}
