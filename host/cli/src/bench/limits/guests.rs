//! Guests that nobody's compiler makes: a committed guest with one of its functions written over.

use anyhow::{Context, Result};
use std::ops::Range;
use wasmparser::{CompositeInnerType, ExternalKind, Parser, Payload, TypeRef};

/// `loop br 0 end unreachable`: never returns, and whatever it should return, it need not.
pub(super) const ENDLESS: &[u8] = &[0x03, 0x40, 0x0c, 0x00, 0x0b, 0x00];

/// What `run` does instead of its work, and words that the fault holds.
pub(super) const TRAPS: [(&str, &[u8], &str); 6] = [
    ("unreachable", &[0x00], "unreachable"),
    // i32.const 1, i32.const 0, i32.div_s, drop
    ("division by zero", &[0x41, 0x01, 0x41, 0x00, 0x6d, 0x1a, 0x00], "divide by zero"),
    // i32.const -2^31, i32.const -1, i32.div_s, drop
    ("division overflow", &[0x41, 0x80, 0x80, 0x80, 0x80, 0x78, 0x41, 0x7f, 0x6d, 0x1a, 0x00], "overflow"),
    // f32.const nan, i32.trunc_f32_s, drop
    ("conversion of NaN", &[0x43, 0x00, 0x00, 0xc0, 0x7f, 0xa8, 0x1a, 0x00], "conversion"),
    // i32.const -1, i32.load, drop
    ("load out of bounds", &[0x41, 0x7f, 0x28, 0x02, 0x00, 0x1a, 0x00], "out of bounds"),
    // i32.const 0x7fffffff, i32.const 0, i32.store
    ("store out of bounds", &[0x41, 0xff, 0xff, 0xff, 0xff, 0x07, 0x41, 0x00, 0x36, 0x02, 0x00, 0x00], "out of bounds"),
];

/// A list of 2³¹ − 1 tensors: `result` with tag 0, a pointer and a length, at address 0.
pub(super) const HUGE_RETURN: &[u8] = &[
    0x41, 0x00, 0x41, 0x00, 0x36, 0x02, 0x00, 0x41, 0x00, 0x41, 0x10, 0x36, 0x02, 0x04, 0x41, 0x00, 0x41, 0xff, 0xff,
    0xff, 0xff, 0x07, 0x36, 0x02, 0x08, 0x41, 0x00, 0x0f,
];

/// An error text of 2³¹ − 1 bytes: the same with tag 1.
pub(super) const HUGE_ERROR: &[u8] = &[
    0x41, 0x00, 0x41, 0x01, 0x36, 0x02, 0x00, 0x41, 0x00, 0x41, 0x10, 0x36, 0x02, 0x04, 0x41, 0x00, 0x41, 0xff, 0xff,
    0xff, 0xff, 0x07, 0x36, 0x02, 0x08, 0x41, 0x00, 0x0f,
];

/// `loop ref.null func, i32.const 1000, table.grow 0, drop, br 0 end`.
pub(super) const TABLE_GROW: &[u8] =
    &[0x03, 0x40, 0xd0, 0x70, 0x41, 0xe8, 0x07, 0xfc, 0x0f, 0x00, 0x1a, 0x0c, 0x00, 0x0b, 0x00];

/// A core module of a component, as far as it matters here.
#[derive(Default)]
struct Module {
    /// Of each function that it defines: its body in the component, locals and all.
    bodies: Vec<Range<usize>>,
    imported_functions: u32,
    exports: Vec<(String, u32)>,
    /// For each type, whether it takes and gives nothing.
    plain_types: Vec<bool>,
    function_types: Vec<u32>,
    /// The module in the component.
    range: Range<usize>,
    /// Where its exports end: a start section comes next.
    exports_end: usize,
}

/// The component with the body of an exported core function written over.
pub(super) fn patched(component: &[u8], export: &str, body: &[u8]) -> Result<Vec<u8>> {
    for module in modules(component)? {
        let Some((_, index)) = module.exports.iter().find(|(name, _)| name == export) else { continue };
        let defined = index.checked_sub(module.imported_functions).context("it is imported")?;
        let range = module.bodies.get(defined as usize).context("a function without a body")?;
        return overwritten(component, range, body);
    }
    anyhow::bail!("the guest exports no '{export}'")
}

/// The component with a start function that never ends: a function of its own that takes and gives nothing.
pub(super) fn with_endless_start(component: &[u8]) -> Result<Vec<u8>> {
    for module in modules(component)? {
        let plain = |of: &u32| module.plain_types.get(*of as usize) == Some(&true);
        let long = |at: usize| module.bodies.get(at).is_some_and(|body| body.len() > ENDLESS.len() + 2);
        let found = (0..module.function_types.len()).find(|at| plain(&module.function_types[*at]) && long(*at));
        let Some(at) = found else { continue };
        let mut patched = overwritten(component, &module.bodies[at], ENDLESS)?;
        let mut section = vec![0x08, 0x05];
        section.extend(padded_leb(module.imported_functions + u32::try_from(at)?));
        patched.splice(module.exports_end..module.exports_end, section.iter().copied());
        // The module's size stands before it; wasm's numbers may be padded, but this one is as short as can be.
        let (old, new) = (module.range.len(), module.range.len() + section.len());
        let before = leb(u32::try_from(old)?);
        let size_at = module.range.start - before.len();
        anyhow::ensure!(patched[size_at..module.range.start] == before, "the module's size is written in another way");
        patched.splice(size_at..module.range.start, leb(u32::try_from(new)?));
        return Ok(patched);
    }
    anyhow::bail!("the guest has no function that takes and gives nothing")
}

fn overwritten(component: &[u8], range: &Range<usize>, body: &[u8]) -> Result<Vec<u8>> {
    // No locals; the body; nothing; the end.
    anyhow::ensure!(range.len() >= body.len() + 2, "the function is too short to be written over");
    let mut patched = component.to_vec();
    let target = &mut patched[range.clone()];
    target.fill(0x01);
    target[0] = 0x00;
    target[1..=body.len()].copy_from_slice(body);
    // What follows is never reached, but must be sound.
    if let Some(free) = target.get_mut(1 + body.len()..) {
        if free.len() > 1 {
            free[0] = 0x00;
        }
        if let Some(last) = free.last_mut() {
            *last = 0x0b;
        }
    }
    Ok(patched)
}

fn modules(component: &[u8]) -> Result<Vec<Module>> {
    let mut found: Vec<Module> = Vec::new();
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload?;
        if let Payload::ModuleSection { unchecked_range, .. } = &payload {
            found.push(Module { range: unchecked_range.clone(), ..Module::default() });
            continue;
        }
        let Some(module) = found.last_mut() else { continue };
        match payload {
            Payload::TypeSection(types) => {
                for group in types {
                    for ty in group?.into_types() {
                        module.plain_types.push(match ty.composite_type.inner {
                            CompositeInnerType::Func(of) => of.params().is_empty() && of.results().is_empty(),
                            _ => false,
                        });
                    }
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    module.imported_functions += u32::from(matches!(import?.ty, TypeRef::Func(_)));
                }
            }
            Payload::FunctionSection(functions) => {
                module.function_types = functions.into_iter().collect::<Result<_, _>>()?;
            }
            Payload::ExportSection(exports) => {
                module.exports_end = exports.range().end;
                for export in exports {
                    let export = export?;
                    if export.kind == ExternalKind::Func {
                        module.exports.push((export.name.to_owned(), export.index));
                    }
                }
            }
            Payload::CodeSectionEntry(body) => module.bodies.push(body.range()),
            _ => {}
        }
    }
    Ok(found)
}

fn leb(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn padded_leb(value: u32) -> [u8; 5] {
    std::array::from_fn(|at| ((value >> (7 * at)) & 0x7f) as u8 | if at < 4 { 0x80 } else { 0 })
}
