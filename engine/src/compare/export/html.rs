//! The report as one page that needs nothing else.

use std::fmt::Write;

use protocol::{CompareResult, CompareSide};

use super::Environment;
use super::charts::Chart;
use super::svg::{LogScale, escape, heat};
use crate::memory::human;

const STYLE: &str = "\
:root { --ink: #1f2530; --dim: #667085; --line: #d9dee5; --page: #f6f7f9; --card: #ffffff }\
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 Inter, system-ui, sans-serif }\
main { max-width: 1010px; margin: 0 auto; padding: 28px 20px 60px }\
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 17px; margin: 0 0 6px }\
p { margin: 0 0 8px } .dim { color: var(--dim) }\
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin: 16px 0 }\
svg { display: block; max-width: 100%; height: auto }\
table { border-collapse: collapse; font-variant-numeric: tabular-nums }\
th, td { text-align: right; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top }\
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }\
code, pre { font: 13px/1.5 \"JetBrains Mono\", ui-monospace, monospace }\
pre { overflow-x: auto; background: var(--page); padding: 10px 12px; border-radius: 6px; white-space: pre-wrap }\
.tokens { font: 14px/1.9 \"JetBrains Mono\", ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }\
.tokens span { border-radius: 3px; padding: 2px 0; color: #1f2530 }\
.tokens .part { outline: 1.5px solid #b3261e }\
.badge { background: #fff3c4; border-radius: 4px; padding: 1px 6px; font-size: 13px; color: #1f2530 }\
details summary { cursor: pointer }";

/// The page.
pub(super) fn page(r: &CompareResult, env: &Environment, charts: &[Chart]) -> String {
    let mut out = String::new();
    let title = format!("{}: A against B", escape(&r.model));
    let _ = write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n<h1>{title}</h1>\n"
    );
    let _ = writeln!(
        out,
        "<p class=\"dim\">{} positions, teacher-forced: both sides read the same tokens from position 0, each with \
         its own cache. {}; {}. {}, {}. Figures are measured.</p>",
        r.tokens.len(),
        escape(&r.reference),
        escape(&r.device),
        escape(&env.program),
        escape(&env.created)
    );
    changes(&mut out, r);
    figures(&mut out, r);
    for c in charts {
        let (title, about) = (escape(c.title), escape(&c.about));
        let _ = writeln!(
            out,
            "<section><h2>{title}</h2><p class=\"dim\">{about}</p>{}</section>",
            c.svg
        );
    }
    tokens(&mut out, r);
    isolate(&mut out, r);
    again(&mut out, r, env);
    out.push_str("</main></body></html>\n");
    out
}

fn changes(out: &mut String, r: &CompareResult) {
    out.push_str("<section><h2>What differs</h2>");
    if r.changes.is_empty() {
        out.push_str("<p>Nothing: A and B make the same choices in every slot.</p>");
    } else {
        out.push_str("<table><tr><th>slot</th><th>A</th><th>B</th></tr>");
        for c in &r.changes {
            let _ = write!(
                out,
                "<tr><td><code>{}</code></td><td><code>{}</code></td><td><code>{}</code></td></tr>",
                escape(&c.edit.selector),
                escape(&c.from),
                escape(&c.edit.choice.to_string())
            );
        }
        out.push_str("</table>");
    }
    for n in &r.notes {
        let _ = write!(out, "<p class=\"dim\">{}</p>", escape(n));
    }
    out.push_str("</section>\n");
}

fn row(out: &mut String, cells: &[String]) {
    out.push_str("<tr>");
    for c in cells {
        let _ = write!(out, "<td>{c}</td>");
    }
    out.push_str("</tr>");
}

fn figures(out: &mut String, r: &CompareResult) {
    out.push_str("<section><h2>Figures</h2><table><tr><th>KL(A‖B), nats</th><th>mean</th><th>median</th><th>90 %</th><th>99 %</th><th>largest</th></tr>");
    let k = &r.kl;
    row(
        out,
        &[
            "all positions".into(),
            format!("{} ± {:.1e}", sci(k.mean), k.mean_se),
            sci(k.median),
            sci(k.p90),
            sci(k.p99),
            sci(k.max),
        ],
    );
    row(
        out,
        &[
            "noise floor, A against A".into(),
            sci(r.noise_floor[0]),
            String::new(),
            String::new(),
            String::new(),
            sci(r.noise_floor[1]),
        ],
    );
    out.push_str("</table><p>As llama.cpp's perplexity tool names them (Q is B, base is A):</p><table>");
    for s in r.statistics() {
        row(out, &[s.name.into(), s.to_string()]);
    }
    out.push_str("</table><p></p><table><tr><th></th><th>A</th><th>B</th><th>B against A</th></tr>");
    let [a, b] = &r.sides;
    let both = |f: &dyn Fn(&CompareSide) -> String| [f(a), f(b)];
    let mut line = |name: &str, [x, y]: [String; 2], third: String| row(out, &[name.into(), x, y, third]);
    line(
        "perplexity",
        both(&|s| format!("{:.4} ± {:.4}", s.perplexity, s.perplexity * s.ln_perplexity_se)),
        format!("ln ratio {:+.5} ± {:.5}", r.ln_ppl_ratio[0], r.ln_ppl_ratio[1]),
    );
    line(
        "same likeliest token",
        [String::new(), String::new()],
        format!("{:.2} % ± {:.2}", 100.0 * r.same_top1[0], 100.0 * r.same_top1[1]),
    );
    line(
        "KV cache",
        both(&|s| human(s.kv.total())),
        ratio(b.kv.total() as f64, a.kv.total() as f64),
    );
    line(
        "decode, tokens/s",
        both(&|s| format!("{:.1}", s.decode_tokens_per_s)),
        ratio(b.decode_tokens_per_s, a.decode_tokens_per_s),
    );
    line(
        "teacher-forced pass, tokens/s",
        both(&|s| format!("{:.0}", s.prefill_tokens_per_s)),
        ratio(b.prefill_tokens_per_s, a.prefill_tokens_per_s),
    );
    out.push_str("</table>");
    match &r.divergence {
        None => out.push_str("<p>Greedy texts: the likeliest next token is the same at every position.</p>"),
        Some(d) => {
            let badge = if d.near_tie {
                " <span class=\"badge\">near tie</span>"
            } else {
                ""
            };
            let _ = write!(
                out,
                "<p>Greedy texts part after position {}; A's margin there is {:.4}{badge}.</p>",
                d.position, d.margin
            );
        }
    }
    out.push_str("</section>\n");
}

/// `1.234e-5`, and `0` for nothing at all.
fn sci(v: f64) -> String {
    if v == 0.0 { "0".into() } else { format!("{v:.3e}") }
}

fn ratio(b: f64, a: f64) -> String {
    if a > 0.0 {
        format!("{:.3}x", b / a)
    } else {
        String::new()
    }
}

fn tokens(out: &mut String, r: &CompareResult) {
    let scale = LogScale::of(r.tokens.iter().map(|t| f64::from(t.kl)), 4);
    out.push_str(
        "<section><h2>The text, coloured by KL</h2><p class=\"dim\">Darker: B's prediction after this token is \
         farther from A's (logarithmic). Outlined: the likeliest next tokens differ. Point at a token for its \
         figures.</p><div class=\"tokens\">",
    );
    for (i, t) in r.tokens.iter().enumerate() {
        let class = if t.top1[0] == t.top1[1] { "" } else { " class=\"part\"" };
        let title = format!(
            "position {i}, token {}: KL {:.3e}, log p of the next {:.3} (A) {:.3} (B)",
            t.token, t.kl, t.logprob[0], t.logprob[1]
        );
        let _ = write!(
            out,
            "<span{class} style=\"background:{}\" title=\"{title}\">{}</span>",
            heat(scale.at(f64::from(t.kl))),
            escape(&t.text)
        );
    }
    out.push_str("</div></section>\n");
}

fn isolate(out: &mut String, r: &CompareResult) {
    if r.isolate.is_empty() {
        return;
    }
    out.push_str(
        "<section><h2>Changes one at a time</h2><table><tr><th>A with</th><th>mean KL</th><th>largest KL</th>\
         <th>same likeliest</th><th>cache saved</th></tr>",
    );
    for i in &r.isolate {
        let sign = if i.kv_saved < 0 { "−" } else { "" };
        row(
            out,
            &[
                format!("<code>{}</code>", escape(&i.change.edit.to_string())),
                sci(i.kl_mean),
                sci(i.kl_max),
                format!("{:.2} %", 100.0 * i.same_top1),
                format!("{sign}{}", human(i.kv_saved.unsigned_abs())),
            ],
        );
    }
    out.push_str("</table></section>\n");
}

fn again(out: &mut String, r: &CompareResult, env: &Environment) {
    let env = serde_json::to_string_pretty(env).unwrap_or_default();
    let _ = write!(
        out,
        "<section><h2>To repeat it</h2><pre>{}</pre><p class=\"dim\">Or, with the files beside this page: \
         <code>model1 compare --model PATH --a a.json --b b.json --ids @ids.txt --positions {}</code></p>",
        escape(&r.command),
        r.tokens.len()
    );
    for (name, text) in [
        ("Environment", env.as_str()),
        ("Recipe A", &r.sides[0].json),
        ("Recipe B", &r.sides[1].json),
    ] {
        let _ = write!(
            out,
            "<details><summary>{name}</summary><pre>{}</pre></details>",
            escape(text)
        );
    }
    let _ = writeln!(out, "<p class=\"dim\">It took {:.1} s.</p></section>", r.seconds);
}
