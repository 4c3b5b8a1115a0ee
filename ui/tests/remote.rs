//! Working on a host of another machine: the form, its errors, the way there and back.

mod common;

use common::{Desk, Look, desk};
use protocol::{ErrorInfo, ErrorKind, RemoteHost, Reply, Request};
use ui::platform::Reach;
use ui::testing::Scene;

fn found() -> Reply {
    Reply::RemoteHost(RemoteHost {
        authority: "box:8080".into(),
        token: "0123abcd".into(),
        version: "0.1.0".into(),
    })
}

fn asked(d: &Desk) -> Option<Request> {
    d.scene.last(|r| matches!(r, Request::LookAtHost { .. }))
}

#[test]
fn a_form_leads_to_another_host_and_back() {
    let scene = Scene::start();
    scene.answer(|r| matches!(r, Request::LookAtHost { .. }).then(|| Ok(found())));
    let mut d = desk(scene, Look::default());
    // Nothing is asked before there is an address.
    d.click("Remote host");
    assert!(!d.enabled("Connect"));
    d.write("Address", "http://box:8080/enter/0123abcd");
    d.shot("remote-form-dark");
    let there = Scene::finished();
    d.platform.will_reach(Reach::Through(there.dialer()));
    d.click("Connect");
    d.frames(6);
    assert_eq!(
        asked(&d),
        Some(Request::LookAtHost {
            address: "http://box:8080/enter/0123abcd".into(),
            token: String::new(),
            same_build: true,
        })
    );
    assert_eq!(d.platform.asked().reached, [("box:8080".into(), "0123abcd".into())]);
    // The other host's model and text are here now, and where they are is said.
    assert_eq!(there.connections(), 1);
    assert!(d.has("Prompt"));
    d.must_say("box:8080");
    d.shot("remote-there-dark");
    let before = d.scene.connections();
    d.click("box:8080");
    d.must_say("This window works on the host at box:8080.");
    d.click("Back to this machine");
    d.frames(6);
    assert_eq!(d.scene.connections(), before + 1);
    assert!(!d.has("Prompt") && !d.says("box:8080"));
    d.must_say("MODEL1-mini");
}

#[test]
fn what_went_wrong_stands_in_the_form() {
    for (dark, zoom) in [(true, 1.0), (false, 2.0)] {
        let scene = Scene::start();
        scene.answer(|r| {
            let e = ErrorInfo::new(
                ErrorKind::Resource,
                "box:1 cannot be reached: nothing listens on that port.",
            );
            matches!(r, Request::LookAtHost { .. }).then(|| Err(e.remedy("Does the host run there?")))
        });
        let look = Look {
            dark,
            zoom,
            ..Look::default()
        };
        let mut d = desk(scene, look);
        d.click("Remote host");
        d.write("Address", "box:1");
        d.write("Token", "0123");
        d.click("Connect");
        d.must_say("nothing listens on that port");
        d.must_say("Does the host run there?");
        d.shot(&format!("remote-error-{}-{zoom}", if dark { "dark" } else { "light" }));
        // It goes with the next change, and the form stays for another try.
        d.write("Address", "2");
        assert!(!d.says("nothing listens on that port"));
        assert!(d.enabled("Connect"));
    }
}

#[test]
fn a_window_that_reaches_no_other_host_says_so_and_a_browser_leaves() {
    let scene = Scene::finished();
    scene.answer(|r| matches!(r, Request::LookAtHost { .. }).then(|| Ok(found())));
    let mut d = desk(scene, Look::default());
    d.app_mut().invoke(ui::commands::Command::RemoteHost);
    d.frames(3);
    d.write("Address", "box:8080/enter/0123abcd");
    d.click("Connect");
    d.frames(3);
    d.must_say("This window can reach no other host.");
    d.platform.will_reach(Reach::Leaves);
    d.click("Connect");
    d.frames(3);
    assert_eq!(d.platform.asked().reached.len(), 2);
    assert!(
        !d.has("Connect") && d.has("Prompt"),
        "the page stays until the other one is there"
    );
}
