//! What the writers write comes back bit for bit: safetensors of every format, sharded folders, and the public
//! safetensors crate in both directions.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;

use checkpoint::write::{Spec, write_safetensors};
use checkpoint::{Kind, Silent};
use common::{bytes, check, data, folder, open, spec};
use kernels::ir::{Format, ScaleFormat};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

/// A folder of config.json and these files.
fn written(files: &[(&str, &[Spec])]) -> TempDir {
    let dir = folder(&[("config.json", b"{}")]);
    for (name, specs) in files {
        write_safetensors(&dir.path().join(name), specs, |i| data(specs, i)).unwrap();
    }
    dir
}

#[test]
fn plain_formats() {
    let formats = [
        ("F32", Format::F32, 4),
        ("F16", Format::F16, 2),
        ("BF16", Format::Bf16, 2),
        ("I32", Format::I32, 4),
        ("I64", Format::I64, 8),
    ];
    // The last tensors have no elements, and no dimensions.
    let shapes: [&[usize]; 4] = [&[3, 5], &[2, 1, 7], &[0, 4], &[]];
    let mut specs = Vec::new();
    for (dtype, _, size) in formats {
        for shape in shapes {
            let n: usize = shape.iter().product();
            specs.push(spec(&format!("{dtype}{shape:?}"), dtype, shape, n * size));
        }
    }
    let dir = written(&[("model.safetensors", &specs)]);
    let c = open(dir.path());
    assert_eq!((c.kind, c.tensors().count()), (Kind::HfFolder, specs.len()));
    assert_eq!(
        c.total_bytes,
        std::fs::metadata(dir.path().join("model.safetensors")).unwrap().len()
    );
    for (i, s) in specs.iter().enumerate() {
        let format = formats.iter().find(|f| f.0 == s.dtype).unwrap().1;
        check(&c, s, format, &s.shape, &data(&specs, i));
        assert!(c.tensor(&s.name).unwrap().scales.is_none());
    }
}

#[test]
fn fp8_with_scales_under_either_name() {
    let encodings = [
        ("F32", ScaleFormat::F32, 4),
        ("BF16", ScaleFormat::Bf16, 2),
        ("F8_E8M0", ScaleFormat::E8m0, 1),
    ];
    for (dtype, encoding, size) in encodings {
        for name in ["l.scale", "l.weight_scale_inv", "l.weight.scale"] {
            let specs = [
                spec("l.weight", "F8_E4M3", &[129, 300], 129 * 300),
                spec(name, dtype, &[2, 3], 6 * size),
                spec("stack", "F8_E4M3", &[3, 4, 8], 96),
                spec("stack_scale_inv", dtype, &[3, 1, 1], 3 * size),
            ];
            let dir = written(&[("model.safetensors", &specs)]);
            let c = open(dir.path());
            // The scales belong to their weights, and are no tensors of their own.
            assert_eq!(c.tensors().count(), 2);
            for (weight, scale) in [(0, 1), (2, 3)] {
                check(
                    &c,
                    &specs[weight],
                    Format::F8E4m3,
                    &specs[weight].shape,
                    &data(&specs, weight),
                );
                let found = c.tensor(&specs[weight].name).unwrap().scales.as_ref().unwrap();
                assert_eq!(found.name, specs[scale].name);
                assert_eq!(found.shape, specs[scale].shape);
                assert_eq!(found.bytes[..], data(&specs, scale));
                let spec = found.spec;
                assert_eq!((spec.format, spec.block_rows, spec.block_cols), (encoding, 128, 128));
            }
        }
    }
}

#[test]
fn block_sizes_of_the_configuration() {
    let dir = folder(&[(
        "config.json",
        br#"{"quantization_config":{"weight_block_size":[64,32]}}"#,
    )]);
    let specs = [
        spec("l.weight", "F8_E4M3", &[65, 64], 65 * 64),
        spec("l.scale", "F32", &[2, 2], 16),
    ];
    write_safetensors(&dir.path().join("model.safetensors"), &specs, |i| data(&specs, i)).unwrap();
    let c = open(dir.path());
    let scales = c.tensor("l.weight").unwrap().scales.as_ref().unwrap();
    assert_eq!((scales.spec.block_rows, scales.spec.block_cols), (64, 32));
    assert_eq!(scales.bytes[..], data(&specs, 1));
}

#[test]
fn packed_fp4() {
    for dtype in ["I8", "U8"] {
        for name in ["e.scale", "e.weight_scale_inv"] {
            let specs = [
                spec("e.weight", dtype, &[3, 40], 120),
                spec(name, "F8_E8M0", &[3, 3], 9),
            ];
            let dir = written(&[("model.safetensors", &specs)]);
            let c = open(dir.path());
            // Two values a byte.
            check(&c, &specs[0], Format::Fp4E2m1, &[3, 80], &data(&specs, 0));
            let scales = c.tensor("e.weight").unwrap().scales.as_ref().unwrap();
            assert_eq!((scales.name.as_str(), scales.shape.as_slice()), (name, &[3, 3][..]));
            assert_eq!(scales.bytes[..], data(&specs, 1));
            assert_eq!(
                (scales.spec.format, scales.spec.block_rows, scales.spec.block_cols),
                (ScaleFormat::E8m0, 1, 32)
            );
        }
    }
}

#[test]
fn scales_only_attach_to_quantised_weights() {
    let specs = [spec("n.weight", "BF16", &[2, 2], 8), spec("n.scale", "F32", &[1, 1], 4)];
    let dir = written(&[("model.safetensors", &specs)]);
    let c = open(dir.path());
    check(&c, &specs[0], Format::Bf16, &[2, 2], &data(&specs, 0));
    check(&c, &specs[1], Format::F32, &[1, 1], &data(&specs, 1));
    assert!(c.tensor("n.weight").unwrap().scales.is_none());
}

#[test]
fn sharded_folders() {
    // The weight and its scales lie in different shards.
    let one = [spec("a", "F32", &[2, 2], 16), spec("l.weight", "F8_E4M3", &[4, 4], 16)];
    let two = [spec("b", "BF16", &[3], 6), spec("l.scale", "F32", &[1, 1], 4)];
    let dir = written(&[
        ("model-00001-of-00002.safetensors", &one),
        ("model-00002-of-00002.safetensors", &two),
    ]);
    let check_all = || {
        let c = open(dir.path());
        assert_eq!(c.tensors().count(), 3);
        check(&c, &one[0], Format::F32, &[2, 2], &data(&one, 0));
        check(&c, &one[1], Format::F8E4m3, &[4, 4], &data(&one, 1));
        check(&c, &two[0], Format::Bf16, &[3], &data(&two, 0));
        let l = c.tensor("l.weight").unwrap();
        assert_eq!(l.scales.as_ref().unwrap().bytes[..], data(&two, 1));
        assert_eq!(l.file, dir.path().join("model-00001-of-00002.safetensors"));
        assert_eq!(
            c.tensor("b").unwrap().file,
            dir.path().join("model-00002-of-00002.safetensors")
        );
        c.prefault(2, &Silent).unwrap();
    };
    check_all();
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        r#"{"metadata":{"total_size":42},"weight_map":{
            "a":"model-00001-of-00002.safetensors","l.weight":"model-00001-of-00002.safetensors",
            "b":"model-00002-of-00002.safetensors","l.scale":"model-00002-of-00002.safetensors"}}"#,
    )
    .unwrap();
    check_all();
    // With an index, files it does not name are left alone.
    std::fs::write(dir.path().join("consolidated.safetensors"), b"junk").unwrap();
    check_all();
}

#[test]
fn the_public_crate_reads_what_we_write() {
    let specs = [
        spec("z", "F32", &[2, 3], 24),
        spec("a", "BF16", &[5], 10),
        spec("l.weight", "F8_E4M3", &[2, 2], 4),
        spec("l.scale", "F8_E8M0", &[1, 1], 1),
        spec("empty", "F16", &[0, 2], 0),
        spec("quote\" \\ ü \n", "I64", &[], 8),
    ];
    let dir = written(&[("model.safetensors", &specs)]);
    let file = std::fs::read(dir.path().join("model.safetensors")).unwrap();
    let theirs = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(theirs.len(), specs.len());
    for (i, s) in specs.iter().enumerate() {
        let t = theirs.tensor(&s.name).unwrap();
        assert_eq!((t.shape(), t.data()), (&s.shape[..], &data(&specs, i)[..]));
        assert_eq!(t.dtype().to_string(), s.dtype);
    }
}

#[test]
fn we_read_what_the_public_crate_writes() {
    let tensors: Vec<(&str, Dtype, Format, Vec<usize>, usize)> = vec![
        ("z", Dtype::F32, Format::F32, vec![2, 3], 24),
        ("a", Dtype::BF16, Format::Bf16, vec![5], 10),
        ("h", Dtype::F16, Format::F16, vec![1, 1, 2], 4),
        ("i", Dtype::I64, Format::I64, vec![], 8),
        ("j", Dtype::I32, Format::I32, vec![0, 3], 0),
        ("l.weight", Dtype::F8_E4M3, Format::F8E4m3, vec![2, 2], 4),
        ("l.weight_scale_inv", Dtype::F32, Format::F32, vec![1, 1], 4),
    ];
    let stored: Vec<Vec<u8>> = (1..).zip(&tensors).map(|(i, t)| bytes(t.4, i)).collect();
    let views = tensors
        .iter()
        .zip(&stored)
        .map(|((name, dtype, _, shape, _), b)| (*name, TensorView::new(*dtype, shape.clone(), b).unwrap()));
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let file = safetensors::serialize(views, Some(metadata)).unwrap();
    let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &file)]);
    let c = open(dir.path());
    for ((name, _, format, shape, _), b) in tensors.iter().zip(&stored) {
        if *name == "l.weight_scale_inv" {
            let scales = c.tensor("l.weight").unwrap().scales.as_ref().unwrap();
            assert_eq!(scales.bytes[..], b[..]);
        } else {
            check(&c, &spec(name, "", shape, 0), *format, shape, b);
        }
    }
}
