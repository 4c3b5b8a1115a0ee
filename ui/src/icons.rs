//! Icons of the Phosphor font (regular weight). Made by `assets/fonts/subset.py`.

/// Phosphor's `arrow-bend-up-left`.
pub const ARROW_BEND_UP_LEFT: &str = "\u{e024}";
/// Phosphor's `arrow-clockwise`.
pub const ARROW_CLOCKWISE: &str = "\u{e036}";
/// Phosphor's `arrow-counter-clockwise`.
pub const ARROW_COUNTER_CLOCKWISE: &str = "\u{e038}";
/// Phosphor's `arrow-down`.
pub const ARROW_DOWN: &str = "\u{e03e}";
/// Phosphor's `arrow-elbow-down-right`.
pub const ARROW_ELBOW_DOWN_RIGHT: &str = "\u{e046}";
/// Phosphor's `arrow-left`.
pub const ARROW_LEFT: &str = "\u{e058}";
/// Phosphor's `arrow-right`.
pub const ARROW_RIGHT: &str = "\u{e06c}";
/// Phosphor's `arrow-square-out`.
pub const ARROW_SQUARE_OUT: &str = "\u{e5de}";
/// Phosphor's `arrow-u-up-left`.
pub const ARROW_U_UP_LEFT: &str = "\u{e08a}";
/// Phosphor's `arrow-u-up-right`.
pub const ARROW_U_UP_RIGHT: &str = "\u{e08c}";
/// Phosphor's `arrow-up`.
pub const ARROW_UP: &str = "\u{e08e}";
/// Phosphor's `arrows-clockwise`.
pub const ARROWS_CLOCKWISE: &str = "\u{e094}";
/// Phosphor's `arrows-in`.
pub const ARROWS_IN: &str = "\u{e09a}";
/// Phosphor's `arrows-left-right`.
pub const ARROWS_LEFT_RIGHT: &str = "\u{e0a0}";
/// Phosphor's `arrows-out`.
pub const ARROWS_OUT: &str = "\u{e0a2}";
/// Phosphor's `book-open`.
pub const BOOK_OPEN: &str = "\u{e0e6}";
/// Phosphor's `brain`.
pub const BRAIN: &str = "\u{e74e}";
/// Phosphor's `broadcast`.
pub const BROADCAST: &str = "\u{e0f2}";
/// Phosphor's `bug`.
pub const BUG: &str = "\u{e5f4}";
/// Phosphor's `camera`.
pub const CAMERA: &str = "\u{e10e}";
/// Phosphor's `caret-double-down`.
pub const CARET_DOUBLE_DOWN: &str = "\u{e126}";
/// Phosphor's `caret-down`.
pub const CARET_DOWN: &str = "\u{e136}";
/// Phosphor's `caret-left`.
pub const CARET_LEFT: &str = "\u{e138}";
/// Phosphor's `caret-right`.
pub const CARET_RIGHT: &str = "\u{e13a}";
/// Phosphor's `caret-up`.
pub const CARET_UP: &str = "\u{e13c}";
/// Phosphor's `chart-bar`.
pub const CHART_BAR: &str = "\u{e150}";
/// Phosphor's `chart-line`.
pub const CHART_LINE: &str = "\u{e154}";
/// Phosphor's `chat-circle`.
pub const CHAT_CIRCLE: &str = "\u{e168}";
/// Phosphor's `check`.
pub const CHECK: &str = "\u{e182}";
/// Phosphor's `check-circle`.
pub const CHECK_CIRCLE: &str = "\u{e184}";
/// Phosphor's `circle`.
pub const CIRCLE: &str = "\u{e18a}";
/// Phosphor's `circle-half`.
pub const CIRCLE_HALF: &str = "\u{e18c}";
/// Phosphor's `circle-notch`.
pub const CIRCLE_NOTCH: &str = "\u{eb44}";
/// Phosphor's `clock`.
pub const CLOCK: &str = "\u{e19a}";
/// Phosphor's `cloud-arrow-down`.
pub const CLOUD_ARROW_DOWN: &str = "\u{e1ac}";
/// Phosphor's `columns`.
pub const COLUMNS: &str = "\u{e546}";
/// Phosphor's `command`.
pub const COMMAND: &str = "\u{e1c4}";
/// Phosphor's `compass`.
pub const COMPASS: &str = "\u{e1c8}";
/// Phosphor's `copy`.
pub const COPY: &str = "\u{e1ca}";
/// Phosphor's `cpu`.
pub const CPU: &str = "\u{e610}";
/// Phosphor's `crosshair`.
pub const CROSSHAIR: &str = "\u{e1d6}";
/// Phosphor's `cube`.
pub const CUBE: &str = "\u{e1da}";
/// Phosphor's `cursor-click`.
pub const CURSOR_CLICK: &str = "\u{e7c8}";
/// Phosphor's `database`.
pub const DATABASE: &str = "\u{e1de}";
/// Phosphor's `dice-five`.
pub const DICE_FIVE: &str = "\u{e1ee}";
/// Phosphor's `dots-six-vertical`.
pub const DOTS_SIX_VERTICAL: &str = "\u{eae2}";
/// Phosphor's `dots-three`.
pub const DOTS_THREE: &str = "\u{e1fe}";
/// Phosphor's `dots-three-vertical`.
pub const DOTS_THREE_VERTICAL: &str = "\u{e208}";
/// Phosphor's `download-simple`.
pub const DOWNLOAD_SIMPLE: &str = "\u{e20c}";
/// Phosphor's `drop-half`.
pub const DROP_HALF: &str = "\u{e566}";
/// Phosphor's `export`.
pub const EXPORT: &str = "\u{eaf0}";
/// Phosphor's `eye`.
pub const EYE: &str = "\u{e220}";
/// Phosphor's `eye-slash`.
pub const EYE_SLASH: &str = "\u{e224}";
/// Phosphor's `fast-forward`.
pub const FAST_FORWARD: &str = "\u{e6a6}";
/// Phosphor's `file`.
pub const FILE: &str = "\u{e230}";
/// Phosphor's `file-text`.
pub const FILE_TEXT: &str = "\u{e23a}";
/// Phosphor's `flask`.
pub const FLASK: &str = "\u{e79e}";
/// Phosphor's `floppy-disk`.
pub const FLOPPY_DISK: &str = "\u{e248}";
/// Phosphor's `folder`.
pub const FOLDER: &str = "\u{e24a}";
/// Phosphor's `folder-open`.
pub const FOLDER_OPEN: &str = "\u{e256}";
/// Phosphor's `funnel`.
pub const FUNNEL: &str = "\u{e266}";
/// Phosphor's `gauge`.
pub const GAUGE: &str = "\u{e628}";
/// Phosphor's `gear-six`.
pub const GEAR_SIX: &str = "\u{e272}";
/// Phosphor's `git-branch`.
pub const GIT_BRANCH: &str = "\u{e278}";
/// Phosphor's `git-diff`.
pub const GIT_DIFF: &str = "\u{e27c}";
/// Phosphor's `globe`.
pub const GLOBE: &str = "\u{e288}";
/// Phosphor's `graph`.
pub const GRAPH: &str = "\u{eb58}";
/// Phosphor's `graphics-card`.
pub const GRAPHICS_CARD: &str = "\u{e612}";
/// Phosphor's `grid-four`.
pub const GRID_FOUR: &str = "\u{e296}";
/// Phosphor's `hard-drives`.
pub const HARD_DRIVES: &str = "\u{e2a0}";
/// Phosphor's `hash`.
pub const HASH: &str = "\u{e2a2}";
/// Phosphor's `hourglass`.
pub const HOURGLASS: &str = "\u{e2b2}";
/// Phosphor's `house`.
pub const HOUSE: &str = "\u{e2c2}";
/// Phosphor's `image`.
pub const IMAGE: &str = "\u{e2ca}";
/// Phosphor's `info`.
pub const INFO: &str = "\u{e2ce}";
/// Phosphor's `keyboard`.
pub const KEYBOARD: &str = "\u{e2d8}";
/// Phosphor's `lightning`.
pub const LIGHTNING: &str = "\u{e2de}";
/// Phosphor's `link`.
pub const LINK: &str = "\u{e2e2}";
/// Phosphor's `list`.
pub const LIST: &str = "\u{e2f0}";
/// Phosphor's `list-bullets`.
pub const LIST_BULLETS: &str = "\u{e2f2}";
/// Phosphor's `lock-simple`.
pub const LOCK_SIMPLE: &str = "\u{e308}";
/// Phosphor's `lock-simple-open`.
pub const LOCK_SIMPLE_OPEN: &str = "\u{e30a}";
/// Phosphor's `magnifying-glass`.
pub const MAGNIFYING_GLASS: &str = "\u{e30c}";
/// Phosphor's `magnifying-glass-minus`.
pub const MAGNIFYING_GLASS_MINUS: &str = "\u{e30e}";
/// Phosphor's `magnifying-glass-plus`.
pub const MAGNIFYING_GLASS_PLUS: &str = "\u{e310}";
/// Phosphor's `memory`.
pub const MEMORY: &str = "\u{e9c4}";
/// Phosphor's `minus`.
pub const MINUS: &str = "\u{e32a}";
/// Phosphor's `minus-circle`.
pub const MINUS_CIRCLE: &str = "\u{e32c}";
/// Phosphor's `monitor`.
pub const MONITOR: &str = "\u{e32e}";
/// Phosphor's `moon`.
pub const MOON: &str = "\u{e330}";
/// Phosphor's `note-pencil`.
pub const NOTE_PENCIL: &str = "\u{e34c}";
/// Phosphor's `package`.
pub const PACKAGE: &str = "\u{e390}";
/// Phosphor's `palette`.
pub const PALETTE: &str = "\u{e6c8}";
/// Phosphor's `pause`.
pub const PAUSE: &str = "\u{e39e}";
/// Phosphor's `pencil-simple`.
pub const PENCIL_SIMPLE: &str = "\u{e3b4}";
/// Phosphor's `play`.
pub const PLAY: &str = "\u{e3d0}";
/// Phosphor's `plug`.
pub const PLUG: &str = "\u{e946}";
/// Phosphor's `plugs`.
pub const PLUGS: &str = "\u{eb56}";
/// Phosphor's `plugs-connected`.
pub const PLUGS_CONNECTED: &str = "\u{eb5a}";
/// Phosphor's `plus`.
pub const PLUS: &str = "\u{e3d4}";
/// Phosphor's `power`.
pub const POWER: &str = "\u{e3da}";
/// Phosphor's `prohibit`.
pub const PROHIBIT: &str = "\u{e3de}";
/// Phosphor's `pulse`.
pub const PULSE: &str = "\u{e000}";
/// Phosphor's `question`.
pub const QUESTION: &str = "\u{e3e8}";
/// Phosphor's `record`.
pub const RECORD: &str = "\u{e3ee}";
/// Phosphor's `robot`.
pub const ROBOT: &str = "\u{e762}";
/// Phosphor's `rows`.
pub const ROWS: &str = "\u{e5a2}";
/// Phosphor's `scales`.
pub const SCALES: &str = "\u{e750}";
/// Phosphor's `selection`.
pub const SELECTION: &str = "\u{e69a}";
/// Phosphor's `share-network`.
pub const SHARE_NETWORK: &str = "\u{e408}";
/// Phosphor's `shuffle`.
pub const SHUFFLE: &str = "\u{e422}";
/// Phosphor's `sidebar-simple`.
pub const SIDEBAR_SIMPLE: &str = "\u{ec24}";
/// Phosphor's `skip-back`.
pub const SKIP_BACK: &str = "\u{e5a4}";
/// Phosphor's `skip-forward`.
pub const SKIP_FORWARD: &str = "\u{e5a6}";
/// Phosphor's `sliders-horizontal`.
pub const SLIDERS_HORIZONTAL: &str = "\u{e434}";
/// Phosphor's `sort-ascending`.
pub const SORT_ASCENDING: &str = "\u{e444}";
/// Phosphor's `sort-descending`.
pub const SORT_DESCENDING: &str = "\u{e446}";
/// Phosphor's `sparkle`.
pub const SPARKLE: &str = "\u{e6a2}";
/// Phosphor's `square`.
pub const SQUARE: &str = "\u{e45e}";
/// Phosphor's `squares-four`.
pub const SQUARES_FOUR: &str = "\u{e464}";
/// Phosphor's `stack`.
pub const STACK: &str = "\u{e466}";
/// Phosphor's `star`.
pub const STAR: &str = "\u{e46a}";
/// Phosphor's `stop`.
pub const STOP: &str = "\u{e46c}";
/// Phosphor's `sun`.
pub const SUN: &str = "\u{e472}";
/// Phosphor's `swap`.
pub const SWAP: &str = "\u{e83c}";
/// Phosphor's `table`.
pub const TABLE: &str = "\u{e476}";
/// Phosphor's `tag`.
pub const TAG: &str = "\u{e478}";
/// Phosphor's `target`.
pub const TARGET: &str = "\u{e47c}";
/// Phosphor's `terminal-window`.
pub const TERMINAL_WINDOW: &str = "\u{eae8}";
/// Phosphor's `text-aa`.
pub const TEXT_AA: &str = "\u{e6ee}";
/// Phosphor's `text-align-left`.
pub const TEXT_ALIGN_LEFT: &str = "\u{e484}";
/// Phosphor's `thermometer`.
pub const THERMOMETER: &str = "\u{e5c6}";
/// Phosphor's `trash`.
pub const TRASH: &str = "\u{e4a6}";
/// Phosphor's `tree-structure`.
pub const TREE_STRUCTURE: &str = "\u{e67c}";
/// Phosphor's `tree-view`.
pub const TREE_VIEW: &str = "\u{ee48}";
/// Phosphor's `upload-simple`.
pub const UPLOAD_SIMPLE: &str = "\u{e4c0}";
/// Phosphor's `user`.
pub const USER: &str = "\u{e4c2}";
/// Phosphor's `warning`.
pub const WARNING: &str = "\u{e4e0}";
/// Phosphor's `warning-circle`.
pub const WARNING_CIRCLE: &str = "\u{e4e2}";
/// Phosphor's `wrench`.
pub const WRENCH: &str = "\u{e5d4}";
/// Phosphor's `x`.
pub const X: &str = "\u{e4f6}";
/// Phosphor's `x-circle`.
pub const X_CIRCLE: &str = "\u{e4f8}";
