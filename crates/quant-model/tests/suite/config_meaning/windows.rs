//! Which layers attend to a window.

use super::table::{Is, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3, Refused, Warns, check};
use serde_json::json;

#[test]
fn windows() {
    let both = &["sliding_window", "layer_types"];
    for qwen in [QWEN2, QWEN3] {
        check(vec![
            (
                qwen,
                json!({ "use_sliding_window": true, "max_window_layers": 1 }),
                Is(|s| s.windows == [None, Some(4096)]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": 16 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": null, "max_window_layers": 0 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": null, "sliding_window": 16, "max_window_layers": 0 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "sliding_window": 16, "max_window_layers": 0 }),
                Is(|s| s.windows == [None, None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "layer_types": ["full_attention", "sliding_attention"] }),
                Is(|s| s.windows == [None, Some(4096)]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 0,
                "layer_types": ["sliding_attention", "full_attention"] }),
                Warns(&["`layer_types`", "`max_window_layers`"], |s| s.windows == [Some(16), None]),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1,
                "layer_types": ["full_attention", "sliding_attention"] }),
                Is(|s| s.windows == [None, Some(16)]),
            ),
            (
                qwen,
                json!({ "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] }),
                Refused(both),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "sliding_window": null,
                "layer_types": ["sliding_attention", "full_attention"] }),
                Refused(both),
            ),
            (
                qwen,
                json!({ "use_sliding_window": true, "max_window_layers": null }),
                Refused(&["max_window_layers"]),
            ),
        ]);
    }
    check(vec![
        (
            LLAMA,
            json!({ "sliding_window": 16 }),
            Warns(&["`sliding_window` = 16", "LlamaConfig"], |s| s.windows == [None, None]),
        ),
        (
            LLAMA,
            json!({ "use_sliding_window": true }),
            Warns(&["`use_sliding_window`"], |s| s.windows == [None, None]),
        ),
        (
            LLAMA,
            json!({ "sliding_window": null, "use_sliding_window": false }),
            Is(|s| s.windows == [None, None]),
        ),
    ]);
}

#[test]
fn one_window_for_all_layers() {
    check(vec![
        (MISTRAL, json!({}), Is(|s| s.windows == [Some(4096); 2])),
        (MISTRAL, json!({ "sliding_window": null }), Is(|s| s.windows == [None; 2])),
        (MISTRAL, json!({ "sliding_window": 16 }), Is(|s| s.windows == [Some(16); 2])),
        (MISTRAL, json!({ "sliding_window": 0 }), Refused(&["sliding_window", "found 0"])),
        (MISTRAL, json!({ "sliding_window": 4096.5 }), Refused(&["sliding_window", "an integer"])),
        (PHI3, json!({}), Is(|s| s.windows == [None; 2])),
        (PHI3, json!({ "sliding_window": null }), Is(|s| s.windows == [None; 2])),
        (PHI3, json!({ "sliding_window": 16 }), Is(|s| s.windows == [Some(16); 2])),
        // Keys of other families: fine where they say the same.
        (MISTRAL, json!({ "use_sliding_window": true }), Is(|s| s.windows == [Some(4096); 2])),
        (
            MISTRAL,
            json!({ "sliding_window": null, "use_sliding_window": false }),
            Is(|s| s.windows == [None; 2]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": 16, "use_sliding_window": false }),
            Refused(&["`use_sliding_window` = false", "`sliding_window` = 16", "vLLM"]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": 16, "layer_types": ["sliding_attention", "sliding_attention"] }),
            Is(|s| s.windows == [Some(16); 2]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": null, "layer_types": ["full_attention", "full_attention"] }),
            Is(|s| s.windows == [None; 2]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"] }),
            Refused(&["`layer_types`", "`sliding_window` = 16"]),
        ),
        (
            MISTRAL,
            json!({ "sliding_window": null, "layer_types": ["full_attention", "sliding_attention"] }),
            Refused(&["`layer_types`", "`sliding_window` = null"]),
        ),
    ]);
}
