//! Tests of MODEL1's prompt format. The fixture's prompts were written by a Python transcription of the public
//! renderer, not by this crate.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::{Message, ToolCall};

fn message(value: &Value) -> Message {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut out = Message::new(text("role").unwrap_or_default(), text("content").unwrap_or_default());
    out.reasoning = text("reasoning_content");
    out.tool_call_id = text("tool_call_id");
    out.task = text("task");
    out.tools = value
        .get("tools")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    for call in value.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
        out.tool_calls.push(ToolCall {
            id: call["id"].as_str().map(str::to_owned),
            name: call["function"]["name"].as_str().unwrap_or_default().to_owned(),
            arguments: call["function"]["arguments"].clone(),
        });
    }
    out
}

#[test]
fn prompts_equal_the_public_renderers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/fixtures/model1.json")).unwrap();
    assert!(cases.len() > 60);
    for case in &cases {
        let messages: Vec<Message> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let effort = match case["effort"].as_str().unwrap() {
            "none" => Effort::None,
            "high" => Effort::High,
            _ => Effort::Max,
        };
        let drop_reasoning = case["drop"].as_bool().unwrap();
        let options = RenderOptions {
            effort,
            drop_reasoning,
            ..Default::default()
        };
        let text = render(&messages, &options).unwrap();
        assert_eq!(
            text,
            case["expected"].as_str().unwrap(),
            "{effort:?} {drop_reasoning} {}",
            case["messages"]
        );
    }
}

#[test]
fn simple_prompts_by_hand() {
    let hi = [Message::system("Be brief."), Message::user("Hi")];
    let prompt = |effort| {
        render(
            &hi,
            &RenderOptions {
                effort,
                ..Default::default()
            },
        )
        .unwrap()
    };
    assert_eq!(
        prompt(Effort::None),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜></think>"
    );
    assert_eq!(
        prompt(Effort::High),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi<｜Assistant｜><think>"
    );
    assert!(prompt(Effort::Max).starts_with("<｜begin▁of▁sentence｜>Reasoning Effort: Absolute maximum"));
    let bare = RenderOptions {
        add_generation_prompt: false,
        ..Default::default()
    };
    assert_eq!(
        render(&hi, &bare).unwrap(),
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Hi"
    );
}

#[test]
fn tools_beside_the_conversation_go_to_the_system_turn() {
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let options = RenderOptions {
        tools: vec![tool.clone()],
        ..Default::default()
    };
    let beside = render(&[Message::user("x")], &options).unwrap();
    let inside = [
        Message {
            tools: vec![tool],
            ..Message::system("")
        },
        Message::user("x"),
    ];
    assert_eq!(beside, render(&inside, &RenderOptions::default()).unwrap());
    assert!(beside.starts_with("<｜begin▁of▁sentence｜>\n\n## Tools\n\n"));
    assert!(beside.contains("\n{\"name\": \"f\", \"parameters\": {}}\n"));
}

#[test]
fn unknown_roles_and_tasks_are_refused() {
    let role = render(
        &[Message::user("a"), Message::new("robot", "b")],
        &RenderOptions::default(),
    )
    .unwrap_err();
    assert!(
        role.to_string()
            .starts_with("message 1 of the conversation: role \"robot\""),
        "{role}"
    );
    let task = Message {
        task: Some("nap".into()),
        ..Message::user("x")
    };
    assert!(render(&[task], &RenderOptions::default()).is_err());
    assert!(render(&[Message::new("developer", "")], &RenderOptions::default()).is_err());
}

#[test]
fn answers_are_taken_apart() {
    let chat = parse("Hello!<｜end▁of▁sentence｜>rest", false).unwrap();
    assert_eq!(
        chat,
        Parsed {
            content: "Hello!".into(),
            complete: true,
            ..Default::default()
        }
    );
    let thought = parse("hm, ok</think>Yes.", true).unwrap();
    assert_eq!(
        (thought.reasoning.as_deref(), thought.content.as_str()),
        (Some("hm, ok"), "Yes.")
    );
    let cut = parse("still thinking", true).unwrap();
    assert_eq!(
        (cut.reasoning.as_deref(), cut.complete),
        (Some("still thinking"), false)
    );
}

#[test]
fn malformed_calls_are_refused() {
    let call = |inner: &str| format!("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n{inner}");
    let close = "\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";
    let parameter =
        |flag: &str, text: &str| format!("<｜DSML｜parameter name=\"a\" string=\"{flag}\">{text}</｜DSML｜parameter>");
    let bad = [
        format!("{}{close}", call(&parameter("false", "{oops"))),
        format!("{}{close}", call(&parameter("maybe", "x"))),
        format!(
            "{}{close}",
            call(&[parameter("true", "x"), parameter("true", "y")].join("\n"))
        ),
        format!("{}{close}", call("plain text")),
        format!("{}{close} more", call(&parameter("true", "x"))),
    ];
    for text in bad {
        let error = parse(&text, false).unwrap_err().to_string();
        assert!(error.contains("accepted is"), "{error}");
    }
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-zé\"\\\\\n{}<>=/ ]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop::collection::vec(inner, 0..3).prop_map(Value::from)
    })
}

fn answer() -> impl Strategy<Value = (String, String, Vec<ToolCall>)> {
    let arguments = prop::collection::btree_map("[a-z_]{1,6}", value(), 0..4);
    let arguments = arguments.prop_map(|map| Value::Object(map.into_iter().collect()));
    let call = ("[a-z_.]{1,8}", arguments).prop_map(|(name, arguments)| ToolCall {
        id: None,
        name,
        arguments,
    });
    (
        "[a-z \n<>]{0,20}",
        "[a-z \n<>]{0,20}",
        prop::collection::vec(call, 0..4),
    )
}

/// The answer as the model writes it.
fn written((reasoning, content, calls): &(String, String, Vec<ToolCall>)) -> String {
    let answer = Message {
        reasoning: Some(reasoning.clone()),
        tool_calls: calls.clone(),
        ..Message::assistant(content.clone())
    };
    let options = RenderOptions {
        effort: Effort::High,
        ..Default::default()
    };
    let all = render(&[Message::user("q"), answer], &options).unwrap();
    let start = render(&[Message::user("q")], &options).unwrap();
    all.strip_prefix(&start).unwrap().to_owned()
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(answer in answer()) {
        let parsed = parse(&written(&answer), true).unwrap();
        let (reasoning, content, calls) = answer;
        let expected = Parsed { reasoning: Some(reasoning), content, tool_calls: calls, complete: true };
        prop_assert_eq!(parsed, expected);
    }

    #[test]
    fn a_cut_answer_is_no_error(answer in answer(), at in 0usize..400) {
        let text = written(&answer);
        let text = &text[..text.find(EOS).unwrap_or(text.len())];
        let cut: String = text.chars().take(at).collect();
        let parsed = parse(&cut, true).unwrap();
        prop_assert!(parsed.tool_calls.len() <= answer.2.len());
    }
}
