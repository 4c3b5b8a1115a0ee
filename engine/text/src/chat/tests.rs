//! Tests of chat templates. Expected prompts in the fixture were rendered by Python's jinja2, set up as in
//! transformers.

use super::*;

fn message(value: &Value) -> Message {
    let text = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let mut out = Message::new(text("role").unwrap_or_default(), text("content").unwrap_or_default());
    out.tool_call_id = text("tool_call_id");
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
fn real_templates_render_as_in_python() {
    let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/chat.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() > 25);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(fixture["templates"][name].as_str().unwrap()).unwrap();
        let messages: Vec<Message> = case["messages"].as_array().unwrap().iter().map(message).collect();
        let vars = TemplateVars {
            bos_token: Some("<B>".into()),
            eos_token: Some("<E>".into()),
            tools: case["tools"].as_array().unwrap().clone(),
            now: fixture["now"].as_i64(),
            extra: case["extra"].as_object().unwrap().clone(),
        };
        let rendered = template.render(&messages, case["gen"].as_bool().unwrap(), &vars);
        match (case.get("expected"), rendered) {
            (Some(expected), Ok(text)) => assert_eq!(text, expected.as_str().unwrap(), "{name}: {}", case["messages"]),
            (None, Err(e)) => assert!(e.to_string().contains(case["error"].as_str().unwrap()), "{e}"),
            (expected, got) => panic!("{name}: expected {expected:?}, got {got:?}"),
        }
    }
}

#[test]
fn errors_name_the_line_and_the_reason() {
    let broken = ChatTemplate::new("a\n{% if x %}").unwrap_err().to_string();
    assert!(broken.starts_with("chat template line 2: "), "{broken}");
    let template = ChatTemplate::new("{% if messages|length > 1 %}\n{{ raise_exception('one turn only') }}{% endif %}");
    let template = template.unwrap();
    let error = template.render(
        &[Message::user("a"), Message::user("b")],
        true,
        &TemplateVars::default(),
    );
    assert_eq!(error.unwrap_err().to_string(), "chat template line 2: one turn only");
}

#[test]
fn endless_templates_are_stopped() {
    let source = "{% for a in range(10000) %}{% for b in range(10000) %}{% for c in range(10000) %}{% endfor %}\
                  {% endfor %}{% endfor %}";
    assert!(
        ChatTemplate::new(source)
            .unwrap()
            .render(&[], true, &TemplateVars::default())
            .is_err()
    );
}

#[test]
fn generation_tags_are_plain_blocks() {
    let source = "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%} {% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    let text = template.render(
        &[Message::user("a"), Message::user("b")],
        false,
        &TemplateVars::default(),
    );
    assert_eq!(text.unwrap(), "ab");
}
