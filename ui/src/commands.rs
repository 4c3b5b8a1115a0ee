//! One registry of commands: menus, palette and shortcuts are made from it.

use egui::{Key, KeyboardShortcut, Modifiers};

use crate::icons;
use crate::layout::Workspace;
use crate::store::Store;

/// Everything that can be asked of the program as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "titles and explanations are in COMMANDS")]
pub enum Command {
    Generate,
    Stop,
    Regenerate,
    Endless,
    NewText,
    NewChat,
    CopyText,
    CopyCommand,
    ExportText,
    ExportMarkdown,
    ExportJson,
    OpenModel,
    CloseModel,
    RestartEngine,
    RemoteHost,
    LocalHost,
    Workspace(Workspace),
    Palette,
    Find,
    Play,
    Back,
    Forward,
    First,
    Last,
    Unlock,
    Undo,
    Redo,
    ZoomIn,
    ZoomOut,
    ZoomReset,
    FullScreen,
    ToggleTheme,
    ToggleLeft,
    ToggleRight,
    ToggleBottom,
    ResetLayout,
    Settings,
    Keyboard,
    Tour,
    About,
    CopyReport,
    TakeOver,
}

/// A menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The text being written.
    Text,
    /// Models.
    Model,
    /// What is done with recipe, layout and selection.
    Edit,
    /// What is shown.
    View,
    /// The token scrubber.
    Tokens,
    /// Help and the program itself.
    Help,
}

impl Group {
    /// All menus in order.
    pub const ALL: [Self; 6] = [
        Self::Text,
        Self::Model,
        Self::Edit,
        Self::View,
        Self::Tokens,
        Self::Help,
    ];

    /// Title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Text => "Text",
            Self::Model => "Model",
            Self::Edit => "Edit",
            Self::View => "View",
            Self::Tokens => "Tokens",
            Self::Help => "Help",
        }
    }
}

/// A command with everything menus and palette show.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which.
    pub command: Command,
    /// Menu.
    pub group: Group,
    /// Icon.
    pub icon: &'static str,
    /// Title.
    pub title: &'static str,
    /// More words the palette finds it by.
    pub words: &'static str,
    /// Shortcut.
    pub keys: Option<KeyboardShortcut>,
    /// The shortcut also works while a text field has the focus.
    pub always: bool,
}

const fn entry(command: Command, group: Group, icon: &'static str, title: &'static str) -> Entry {
    Entry {
        command,
        group,
        icon,
        title,
        words: "",
        keys: None,
        always: false,
    }
}

impl Entry {
    const fn words(mut self, words: &'static str) -> Self {
        self.words = words;
        self
    }

    const fn keys(mut self, modifiers: Modifiers, key: Key) -> Self {
        self.keys = Some(KeyboardShortcut::new(modifiers, key));
        self
    }

    const fn always(mut self) -> Self {
        self.always = true;
        self
    }
}

const CTRL: Modifiers = Modifiers::COMMAND;
const CTRL_SHIFT: Modifiers = Modifiers {
    shift: true,
    ..Modifiers::COMMAND
};
const NONE: Modifiers = Modifiers::NONE;

/// The registry.
pub const COMMANDS: &[Entry] = &[
    entry(Command::Generate, Group::Text, icons::PLAY, "Generate")
        .words("send write continue run start")
        .keys(CTRL, Key::Enter)
        .always(),
    entry(Command::Stop, Group::Text, icons::STOP, "Stop")
        .words("cancel halt")
        .keys(NONE, Key::Escape)
        .always(),
    entry(
        Command::Regenerate,
        Group::Text,
        icons::ARROW_CLOCKWISE,
        "Regenerate the last answer",
    )
    .words("again retry"),
    entry(
        Command::Endless,
        Group::Text,
        icons::ARROW_RIGHT,
        "Write past the end, until the context is full",
    )
    .words("endless ignore eos most tokens on off"),
    entry(Command::NewText, Group::Text, icons::NOTE_PENCIL, "New text")
        .words("prompt story")
        .keys(CTRL, Key::N)
        .always(),
    entry(Command::NewChat, Group::Text, icons::CHAT_CIRCLE, "New chat").words("conversation"),
    entry(Command::CopyText, Group::Text, icons::COPY, "Copy the text")
        .keys(CTRL_SHIFT, Key::C)
        .always(),
    entry(
        Command::CopyCommand,
        Group::Text,
        icons::TERMINAL_WINDOW,
        "Copy the command that repeats this run",
    )
    .words("reproduce terminal shell"),
    entry(Command::ExportText, Group::Text, icons::EXPORT, "Export as text").words("save txt"),
    entry(
        Command::ExportMarkdown,
        Group::Text,
        icons::EXPORT,
        "Export as Markdown",
    )
    .words("save md"),
    entry(Command::ExportJson, Group::Text, icons::EXPORT, "Export as JSON").words("save tokens probabilities"),
    entry(
        Command::OpenModel,
        Group::Model,
        icons::FOLDER_OPEN,
        "Open another model",
    )
    .words("load start pull fetch gguf")
    .keys(CTRL, Key::O)
    .always(),
    entry(Command::CloseModel, Group::Model, icons::X_CIRCLE, "Close the model").words("unload eject"),
    entry(
        Command::RestartEngine,
        Group::Model,
        icons::ARROWS_CLOCKWISE,
        "Restart engine",
    )
    .words("gpu process crash"),
    entry(Command::RemoteHost, Group::Model, icons::BROADCAST, "Remote host")
        .words("connect network server another machine link token"),
    entry(
        Command::LocalHost,
        Group::Model,
        icons::ARROW_LEFT,
        "Back to this machine",
    )
    .words("local host disconnect"),
    entry(Command::Undo, Group::Edit, icons::ARROW_U_UP_LEFT, "Undo")
        .words("recipe layout selection back")
        .keys(CTRL, Key::Z),
    entry(Command::Redo, Group::Edit, icons::ARROW_U_UP_RIGHT, "Redo")
        .words("recipe layout selection forward")
        .keys(CTRL_SHIFT, Key::Z),
    entry(
        Command::Unlock,
        Group::Edit,
        icons::LOCK_SIMPLE_OPEN,
        "Unlock the selection",
    )
    .words("deselect clear"),
    entry(Command::Find, Group::Edit, icons::MAGNIFYING_GLASS, "Find in the model")
        .words("search tree")
        .keys(CTRL, Key::F)
        .always(),
    entry(
        Command::Workspace(Workspace::Generate),
        Group::View,
        icons::PENCIL_SIMPLE,
        "Generate workspace",
    )
    .keys(CTRL, Key::Num1)
    .always(),
    entry(
        Command::Workspace(Workspace::Inspect),
        Group::View,
        icons::MAGNIFYING_GLASS_PLUS,
        "Inspect workspace",
    )
    .words("attention")
    .keys(CTRL, Key::Num2)
    .always(),
    entry(
        Command::Workspace(Workspace::Compare),
        Group::View,
        icons::SCALES,
        "Compare workspace",
    )
    .words("a b difference")
    .keys(CTRL, Key::Num3)
    .always(),
    entry(
        Command::Workspace(Workspace::Bench),
        Group::View,
        icons::GAUGE,
        "Bench workspace",
    )
    .words("speed time")
    .keys(CTRL, Key::Num4)
    .always(),
    entry(Command::Palette, Group::View, icons::COMMAND, "All commands")
        .words("palette")
        .keys(CTRL, Key::K)
        .always(),
    entry(
        Command::ToggleLeft,
        Group::View,
        icons::SIDEBAR_SIMPLE,
        "Show or hide the model",
    )
    .keys(CTRL, Key::B)
    .always(),
    entry(
        Command::ToggleRight,
        Group::View,
        icons::COLUMNS,
        "Show or hide the inspector",
    )
    .words("right panel"),
    entry(
        Command::ToggleBottom,
        Group::View,
        icons::ROWS,
        "Show or hide the token scrubber",
    )
    .words("bottom panel"),
    entry(
        Command::ResetLayout,
        Group::View,
        icons::SQUARES_FOUR,
        "Put the panels back in their places",
    )
    .words("reset layout"),
    entry(
        Command::ToggleTheme,
        Group::View,
        icons::CIRCLE_HALF,
        "Switch between dark and light",
    )
    .words("theme colours"),
    entry(Command::ZoomIn, Group::View, icons::MAGNIFYING_GLASS_PLUS, "Larger")
        .words("zoom in")
        .keys(CTRL, Key::Plus)
        .always(),
    entry(Command::ZoomOut, Group::View, icons::MAGNIFYING_GLASS_MINUS, "Smaller")
        .words("zoom out")
        .keys(CTRL, Key::Minus)
        .always(),
    entry(Command::ZoomReset, Group::View, icons::MAGNIFYING_GLASS, "Normal size")
        .words("zoom reset")
        .keys(CTRL, Key::Num0)
        .always(),
    entry(Command::FullScreen, Group::View, icons::ARROWS_OUT, "Full screen")
        .keys(NONE, Key::F11)
        .always(),
    entry(Command::Play, Group::Tokens, icons::PLAY, "Play or pause the scrubber").keys(NONE, Key::Space),
    entry(Command::Back, Group::Tokens, icons::CARET_LEFT, "Previous token").keys(NONE, Key::ArrowLeft),
    entry(Command::Forward, Group::Tokens, icons::CARET_RIGHT, "Next token").keys(NONE, Key::ArrowRight),
    entry(Command::First, Group::Tokens, icons::SKIP_BACK, "First token").keys(NONE, Key::Home),
    entry(
        Command::Last,
        Group::Tokens,
        icons::SKIP_FORWARD,
        "Last token, following the text",
    )
    .words("live")
    .keys(NONE, Key::End),
    entry(Command::Settings, Group::Help, icons::GEAR_SIX, "Settings")
        .words("preferences threads context")
        .keys(CTRL, Key::Comma)
        .always(),
    entry(Command::Keyboard, Group::Help, icons::KEYBOARD, "Keyboard")
        .words("shortcuts keys help")
        .keys(NONE, Key::F1)
        .always(),
    entry(Command::Tour, Group::Help, icons::COMPASS, "Tour").words("introduction help start"),
    entry(Command::About, Group::Help, icons::INFO, "About MODEL1 Explorer").words("version licence"),
    entry(Command::CopyReport, Group::Help, icons::BUG, "Copy a report").words("bug problem versions"),
    entry(
        Command::TakeOver,
        Group::Help,
        icons::CURSOR_CLICK,
        "Take over from the other window",
    )
    .words("driver viewer read-only"),
];

/// A command's entry.
pub fn find(command: Command) -> Option<&'static Entry> {
    COMMANDS.iter().find(|e| e.command == command)
}

/// Whether a command can be run now; else why not.
pub fn available(command: Command, store: &Store) -> Result<(), &'static str> {
    const NO_MODEL: &str = "no model is loaded";
    const VIEWER: &str = "another window is in control";
    let loaded = store.model().is_some();
    let driver = store.is_driver();
    let text = store.text.as_ref().is_some_and(|t| t.branch().len() > 0);
    let ended = store.state.as_ref().is_some_and(|s| !s.engine_ended.is_empty());
    let need = |ok: bool, why: &'static str| if ok { Ok(()) } else { Err(why) };
    match command {
        Command::Generate => need(loaded, NO_MODEL)
            .and(need(driver, VIEWER))
            .and(need(store.writing().is_none(), "a text is being written")),
        Command::Stop => need(store.writing().is_some(), "nothing is being written").and(need(driver, VIEWER)),
        Command::Regenerate => need(loaded, NO_MODEL)
            .and(need(driver, VIEWER))
            .and(need(text, "there is no text yet"))
            .and(need(store.writing().is_none(), "a text is being written")),
        Command::NewText | Command::Endless => need(loaded, NO_MODEL).and(need(driver, VIEWER)),
        Command::NewChat => need(loaded, NO_MODEL).and(need(driver, VIEWER)).and(need(
            store.model().is_some_and(|m| m.chat.is_ok()),
            "this model has no chat format",
        )),
        Command::CopyText | Command::ExportText | Command::ExportMarkdown | Command::ExportJson => {
            need(text, "there is no text yet")
        }
        Command::CopyCommand => need(
            store.text.as_ref().is_some_and(|t| !t.view().command.is_empty()),
            "there is no run yet",
        ),
        Command::CloseModel => need(loaded, NO_MODEL).and(need(driver, VIEWER)),
        Command::RestartEngine => need(loaded, NO_MODEL)
            .and(need(driver, VIEWER))
            .and(need(ended, "the engine is running")),
        Command::Workspace(_)
        | Command::Find
        | Command::ToggleLeft
        | Command::ToggleRight
        | Command::ToggleBottom
        | Command::ResetLayout => need(loaded, NO_MODEL),
        Command::Play | Command::Back | Command::Forward | Command::First | Command::Last => {
            need(store.latest_token().is_some(), "there are no tokens yet")
        }
        Command::TakeOver => need(store.state.is_some() && !driver, "this window is in control"),
        _ => Ok(()),
    }
}

/// Shortcuts pressed in this frame, most modifiers first so that Ctrl+Shift+Z is not taken for Ctrl+Z.
pub fn pressed(ctx: &egui::Context) -> Vec<Command> {
    let typing = ctx.text_edit_focused();
    let keeper: Option<egui::Id> = ctx.data(|d| d.get_temp(arrows_id()));
    let kept = keeper.is_some() && ctx.memory(|m| m.focused()) == keeper;
    let arrow = |k: &KeyboardShortcut| matches!(k.logical_key, Key::ArrowLeft | Key::ArrowRight);
    let mut entries: Vec<(&Entry, KeyboardShortcut)> = COMMANDS.iter().filter_map(|e| e.keys.map(|k| (e, k))).collect();
    entries.sort_by_key(|(_, k)| std::cmp::Reverse(u8::from(k.modifiers.shift) + u8::from(k.modifiers.command)));
    let mut out = Vec::new();
    ctx.input_mut(|i| {
        for (e, keys) in entries {
            // Esc is seen by popups and fields first; the caller decides what it means.
            let wanted = e.command != Command::Stop && (e.always || !typing) && !(kept && arrow(&keys));
            if wanted && i.consume_shortcut(&keys) {
                out.push(e.command);
            }
        }
    });
    out
}

fn arrows_id() -> egui::Id {
    egui::Id::unique("keeper of the arrow keys")
}

/// For a slider that has the focus: left and right move it, not the scrubber nor the focus.
pub fn keep_arrows(ctx: &egui::Context, widget: egui::Id) {
    let filter = egui::EventFilter {
        horizontal_arrows: true,
        ..Default::default()
    };
    ctx.memory_mut(|m| m.set_focus_lock_filter(widget, filter));
    ctx.data_mut(|d| d.insert_temp(arrows_id(), widget));
}

/// How well `entry` fits what was typed; `None` = not at all. Letters must appear in order; starts of words count more.
pub fn score(entry: &Entry, typed: &str) -> Option<i32> {
    let title = fuzzy(entry.title, typed);
    let words = fuzzy(entry.words, typed).map(|s| s - 10);
    let group = fuzzy(entry.group.title(), typed).map(|s| s - 20);
    title.into_iter().chain(words).chain(group).max()
}

/// How well the letters of `typed` appear in order in `text`.
pub fn fuzzy(text: &str, typed: &str) -> Option<i32> {
    let text: Vec<char> = text.to_lowercase().chars().collect();
    let mut score = 0;
    let mut at = 0;
    let mut run = 0;
    for c in typed.to_lowercase().chars().filter(|c| !c.is_whitespace()) {
        let found = text[at..].iter().position(|t| *t == c)? + at;
        let start = found == 0 || text[found - 1] == ' ';
        run = if found == at && at > 0 { run + 1 } else { 0 };
        score += 1 + 3 * i32::from(start) + 2 * run;
        at = found + 1;
    }
    Some(score - text.len() as i32 / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_there_once_and_shortcuts_differ() {
        for (i, a) in COMMANDS.iter().enumerate() {
            for b in &COMMANDS[i + 1..] {
                assert_ne!(a.command, b.command);
                assert!(a.keys.is_none() || a.keys != b.keys, "{} and {}", a.title, b.title);
                assert_ne!(a.title, b.title);
            }
        }
    }

    #[test]
    fn the_palette_finds_by_letters_in_order() {
        let best = |typed: &str| {
            COMMANDS
                .iter()
                .filter_map(|e| score(e, typed).map(|s| (s, e.command)))
                .max_by_key(|(s, _)| *s)
                .map(|x| x.1)
        };
        assert_eq!(best("gen"), Some(Command::Generate));
        assert_eq!(best("zoom in"), Some(Command::ZoomIn));
        assert_eq!(best("exp md"), Some(Command::ExportMarkdown));
        assert_eq!(best("cmp"), Some(Command::Workspace(Workspace::Compare)));
        assert_eq!(best("xqz"), None);
    }
}
