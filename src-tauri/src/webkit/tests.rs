use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn facts(nvidia: bool, session: Session) -> Facts {
    Facts {
        nvidia,
        session,
        ..Facts::default()
    }
}

#[test]
fn each_session_has_its_remedy_and_only_beside_the_driver() {
    for (session, desktop, egl_wayland2, wanted) in [
        (Session::X11, "", false, Remedy::NoDmabuf),
        (Session::X11, "KDE", true, Remedy::NoDmabuf),
        (Session::Wayland, "ubuntu:GNOME", false, Remedy::NoExplicitSync),
        (Session::Wayland, "ubuntu:GNOME", true, Remedy::Nothing),
        (Session::Wayland, "", false, Remedy::NoExplicitSync),
        // KWin insists on acquire points whatever library there is.
        (Session::Wayland, "KDE", true, Remedy::NoExplicitSync),
        (Session::Wayland, "Hyprland", true, Remedy::NoDmabuf),
        (Session::Unknown, "", false, Remedy::Nothing),
    ] {
        let mut facts = Facts {
            desktop: desktop.into(),
            egl_wayland2,
            ..facts(true, session)
        };
        assert_eq!(remedy(&facts), wanted, "{facts:?}");
        facts.nvidia = false;
        assert_eq!(remedy(&facts), Remedy::Nothing, "{facts:?}");
    }
}

#[test]
fn what_the_user_has_set_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    card(root.path(), "card0", "0x10de", "nvidia", true);
    for name in DECIDED {
        for value in ["1", "0", ""] {
            for session in ["x11", "wayland"] {
                let set = |asked: &str| match asked {
                    "XDG_SESSION_TYPE" => Some(session.to_string()),
                    _ => (asked == name).then(|| value.to_string()),
                };
                let facts = Facts::read(root.path(), &set);
                assert!(facts.nvidia, "{facts:?}");
                assert_eq!(facts.decided, Some(name));
                assert_eq!(remedy(&facts), Remedy::Nothing, "{name}={value:?} on {session}");
            }
        }
    }
    // Any other variable is no decision.
    let set = |asked: &str| match asked {
        "DISPLAY" => Some(":0".to_string()),
        "WEBKIT_DEBUG" => Some("1".to_string()),
        _ => None,
    };
    assert_eq!(remedy(&Facts::read(root.path(), &set)), Remedy::NoDmabuf);
}

/// A GPU as the kernel lists it below `root`.
fn card(root: &Path, name: &str, vendor: &str, driver: &str, first: bool) {
    let device = root.join("sys/class/drm").join(name).join("device");
    fs::create_dir_all(&device).unwrap();
    fs::write(device.join("vendor"), format!("{vendor}\n")).unwrap();
    fs::write(device.join("boot_vga"), if first { "1\n" } else { "0\n" }).unwrap();
    symlink(format!("../../../bus/pci/drivers/{driver}"), device.join("driver")).unwrap();
}

#[test]
fn the_driver_is_found_where_it_shows_the_desktop() {
    /// GPUs: name, vendor, driver, whether the machine started on it.
    type Cards = &'static [(&'static str, &'static str, &'static str, bool)];
    let cases: [(Cards, bool); 6] = [
        (&[], false),
        (&[("card0", "0x10de", "nvidia", true)], true),
        (&[("card0", "0x10de", "nouveau", true)], false),
        (&[("card0", "0x1002", "amdgpu", true)], false),
        // A laptop whose desktop is shown by the other GPU.
        (
            &[("card0", "0x8086", "i915", true), ("card1", "0x10de", "nvidia", false)],
            false,
        ),
        // A plug is no GPU.
        (&[("card0-DP-1", "0x10de", "nvidia", true)], false),
    ];
    for (cards, wanted) in cases {
        let root = tempfile::tempdir().unwrap();
        for (name, vendor, driver, first) in cards {
            card(root.path(), name, vendor, driver, *first);
        }
        assert_eq!(Facts::read(root.path(), &|_| None).nvidia, wanted, "{cards:?}");
    }
}

#[test]
fn the_session_is_the_one_gtk_chooses() {
    for (variables, wanted) in [
        (&[][..], Session::Unknown),
        (&[("DISPLAY", ":0")], Session::X11),
        (&[("DISPLAY", ":0"), ("WAYLAND_DISPLAY", "wayland-0")], Session::Wayland),
        (&[("DISPLAY", ":0"), ("WAYLAND_DISPLAY", "")], Session::X11),
        (
            &[("XDG_SESSION_TYPE", "x11"), ("WAYLAND_DISPLAY", "wayland-0")],
            Session::X11,
        ),
        (&[("XDG_SESSION_TYPE", "tty"), ("DISPLAY", ":0")], Session::X11),
        (&[("GDK_BACKEND", "x11"), ("XDG_SESSION_TYPE", "wayland")], Session::X11),
        (
            &[("GDK_BACKEND", "broadway,wayland,x11"), ("DISPLAY", ":0")],
            Session::Wayland,
        ),
    ] {
        let set = |asked: &str| variables.iter().find(|(n, _)| *n == asked).map(|(_, v)| v.to_string());
        assert_eq!(
            Facts::read(Path::new("/nowhere"), &set).session,
            wanted,
            "{variables:?}"
        );
    }
    let hyprland = |asked: &str| (asked == "HYPRLAND_INSTANCE_SIGNATURE").then(|| "abc".to_string());
    assert_eq!(Facts::read(Path::new("/nowhere"), &hyprland).desktop, "Hyprland");
}

#[test]
fn the_newer_wayland_library_counts_where_it_is_loaded_and_works() {
    let old = ("10_nvidia_wayland.json", "libnvidia-egl-wayland.so.1");
    let new = ("09_nvidia_wayland2.json", "libnvidia-egl-wayland2.so.1");
    let late = ("99_nvidia_wayland2.json", "libnvidia-egl-wayland2.so.1");
    let other = ("01_other.json", "libother.so");
    for (manifests, driver, wanted) in [
        (&[new, old][..], "570.86.15", true),
        (&[other, new], "560.35.03", true),
        (&[new, old], "550.54.14", false),
        (&[old, late], "570.86.15", false),
        (&[old], "570.86.15", false),
        (&[], "570.86.15", false),
        (&[new], "", false),
    ] {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/share/egl/egl_external_platform.d");
        fs::create_dir_all(&folder).unwrap();
        for (file, library) in manifests {
            let text = format!("{{ \"ICD\": {{ \"library_path\": \"{library}\" }} }}");
            fs::write(folder.join(file), text).unwrap();
        }
        let version = root.path().join("proc/driver/nvidia");
        fs::create_dir_all(&version).unwrap();
        let line = format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Thu Jan 23 22:50:36 UTC 2025\n");
        fs::write(version.join("version"), line).unwrap();
        let facts = Facts::read(root.path(), &|_| None);
        assert_eq!(facts.egl_wayland2, wanted, "{manifests:?} {driver}");
    }
}
