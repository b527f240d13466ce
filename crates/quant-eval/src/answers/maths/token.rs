//! What LaTeX and plain arithmetic are made of.

use super::expression::Function;
use super::rational::Rational;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bracket {
    Round,
    Square,
    /// `\{ \}`
    Brace,
    /// `{ }`, which only groups.
    Group,
    Angle,
    Floor,
    Ceil,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    /// `≈`, read as `=`.
    About,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Digits without separators, and how many stand behind the point; none without a point.
    Number {
        digits: String,
        scale: Option<u32>,
    },
    /// A decimal that repeats.
    Fraction(Rational),
    Symbol(String),
    /// Words: `\text{…}`, or plain ones behind a number.
    Text(String),
    Pi,
    Euler,
    Imaginary,
    Infinity,
    Plus,
    Minus,
    PlusMinus,
    MinusPlus,
    Times,
    Divide,
    Power,
    Under,
    Factorial,
    Percent,
    Degree,
    Prime,
    Open(Bracket),
    Close(Bracket),
    Bar,
    /// `\frac`, `\binom`, `\sqrt`
    Frac,
    Binom,
    Sqrt,
    Function(Function),
    /// `\log`, whose base may follow.
    Log,
    /// Base 2, 10.
    LogOf(u8),
    Separator,
    Relation(Relation),
    Union,
    /// `\in`
    Member,
    Reals,
    Empty,
    MatrixBegin,
    MatrixEnd,
    Row,
    Cell,
}

/// Functions and constants by their plain names, which are also those of LaTeX.
pub(super) fn named(name: &str) -> Option<Token> {
    Some(match name {
        "sin" => Token::Function(Function::Sin),
        "cos" => Token::Function(Function::Cos),
        "tan" | "tg" => Token::Function(Function::Tan),
        "cot" | "ctg" => Token::Function(Function::Cot),
        "sec" => Token::Function(Function::Sec),
        "csc" => Token::Function(Function::Csc),
        "arcsin" | "asin" => Token::Function(Function::Arcsin),
        "arccos" | "acos" => Token::Function(Function::Arccos),
        "arctan" | "atan" => Token::Function(Function::Arctan),
        "sinh" => Token::Function(Function::Sinh),
        "cosh" => Token::Function(Function::Cosh),
        "tanh" => Token::Function(Function::Tanh),
        "exp" => Token::Function(Function::Exp),
        "ln" => Token::Function(Function::Ln),
        "log" => Token::Log,
        "lg" => Token::LogOf(10),
        "lb" => Token::LogOf(2),
        "abs" => Token::Function(Function::Abs),
        "floor" => Token::Function(Function::Floor),
        "ceil" => Token::Function(Function::Ceil),
        "sqrt" => Token::Sqrt,
        "pi" => Token::Pi,
        "inf" | "infty" | "infinity" | "oo" => Token::Infinity,
        "and" | "or" => Token::Separator,
        "percent" | "percentage" | "pct" => Token::Percent,
        "degree" | "degrees" | "deg" => Token::Degree,
        _ => return None,
    })
}

/// Other commands of LaTeX that are tokens.
pub(super) fn command(name: &str) -> Option<Token> {
    Some(match name {
        "frac" | "dfrac" | "tfrac" | "cfrac" => Token::Frac,
        "binom" | "dbinom" | "tbinom" => Token::Binom,
        "imath" => Token::Imaginary,
        "pm" => Token::PlusMinus,
        "mp" => Token::MinusPlus,
        "cdot" | "times" | "ast" | "bullet" => Token::Times,
        "div" | "over" => Token::Divide,
        "circ" => Token::Degree,
        "prime" => Token::Prime,
        "lbrace" => Token::Open(Bracket::Brace),
        "rbrace" => Token::Close(Bracket::Brace),
        "lbrack" => Token::Open(Bracket::Square),
        "rbrack" => Token::Close(Bracket::Square),
        "langle" => Token::Open(Bracket::Angle),
        "rangle" => Token::Close(Bracket::Angle),
        "lfloor" => Token::Open(Bracket::Floor),
        "rfloor" => Token::Close(Bracket::Floor),
        "lceil" => Token::Open(Bracket::Ceil),
        "rceil" => Token::Close(Bracket::Ceil),
        "vert" | "lvert" | "rvert" | "mid" => Token::Bar,
        "le" | "leq" | "leqslant" => Token::Relation(Relation::LessEqual),
        "ge" | "geq" | "geqslant" => Token::Relation(Relation::GreaterEqual),
        "lt" => Token::Relation(Relation::Less),
        "gt" => Token::Relation(Relation::Greater),
        "ne" | "neq" => Token::Relation(Relation::NotEqual),
        "approx" | "simeq" | "doteq" => Token::Relation(Relation::About),
        "cup" => Token::Union,
        "in" => Token::Member,
        "emptyset" | "varnothing" => Token::Empty,
        "land" | "lor" | "wedge" | "vee" => Token::Separator,
        other => return named(other).filter(|token| *token != Token::Separator),
    })
}

/// Characters that are tokens by themselves.
pub(super) fn character(c: char) -> Option<Token> {
    Some(match c {
        '+' => Token::Plus,
        '-' | '\u{2212}' | '\u{2013}' => Token::Minus,
        '\u{b1}' => Token::PlusMinus,
        '\u{2213}' => Token::MinusPlus,
        '*' | '\u{d7}' | '\u{b7}' | '\u{22c5}' => Token::Times,
        '/' | '\u{f7}' => Token::Divide,
        '_' => Token::Under,
        '!' => Token::Factorial,
        '%' => Token::Percent,
        '\u{b0}' => Token::Degree,
        '\'' | '\u{2032}' => Token::Prime,
        '(' => Token::Open(Bracket::Round),
        ')' => Token::Close(Bracket::Round),
        '[' => Token::Open(Bracket::Square),
        ']' => Token::Close(Bracket::Square),
        '\u{27e8}' => Token::Open(Bracket::Angle),
        '\u{27e9}' => Token::Close(Bracket::Angle),
        '\u{230a}' => Token::Open(Bracket::Floor),
        '\u{230b}' => Token::Close(Bracket::Floor),
        '\u{2308}' => Token::Open(Bracket::Ceil),
        '\u{2309}' => Token::Close(Bracket::Ceil),
        '|' => Token::Bar,
        ',' | ';' => Token::Separator,
        '=' => Token::Relation(Relation::Equal),
        '<' => Token::Relation(Relation::Less),
        '>' => Token::Relation(Relation::Greater),
        '\u{2264}' => Token::Relation(Relation::LessEqual),
        '\u{2265}' => Token::Relation(Relation::GreaterEqual),
        '\u{2260}' => Token::Relation(Relation::NotEqual),
        '\u{2248}' => Token::Relation(Relation::About),
        '\u{222a}' => Token::Union,
        '\u{2208}' => Token::Member,
        '\u{211d}' => Token::Reals,
        '\u{2205}' => Token::Empty,
        '\u{221a}' => Token::Sqrt,
        '\u{3c0}' => Token::Pi,
        '\u{221e}' => Token::Infinity,
        '&' => Token::Cell,
        _ => return None,
    })
}

/// Commands that say how something looks.
pub(super) fn is_appearance(name: &str) -> bool {
    matches!(
        name,
        "left"
            | "right"
            | "middle"
            | "big"
            | "Big"
            | "bigg"
            | "Bigg"
            | "bigl"
            | "bigr"
            | "Bigl"
            | "Bigr"
            | "biggl"
            | "biggr"
            | "displaystyle"
            | "textstyle"
            | "scriptstyle"
            | "limits"
            | "quad"
            | "qquad"
            | "rm"
            | "bf"
            | "it"
            | "boxed"
            | "fbox"
            | "ldots"
            | "dots"
            | "cdots"
            | "phantom"
            | "hfill"
            | "thinspace"
            | "angle"
            | "triangle"
            | "hspace"
            | "Large"
            | "large"
    )
}

/// Commands whose argument is text, or letters in another type.
pub(super) fn is_text(name: &str) -> bool {
    matches!(
        name,
        "text"
            | "textbf"
            | "textit"
            | "textrm"
            | "textsf"
            | "texttt"
            | "textnormal"
            | "mathrm"
            | "mathbf"
            | "mathit"
            | "mathsf"
            | "mathtt"
            | "mathbb"
            | "mathcal"
            | "mathnormal"
            | "boldsymbol"
            | "bm"
            | "mbox"
            | "hbox"
            | "operatorname"
            | "emph"
    )
}

/// Words that multiply the number in front of them.
pub(super) fn multiple(word: &str) -> Option<&'static str> {
    Some(match word {
        "dozen" => "12",
        "hundred" => "100",
        "thousand" => "1000",
        "million" => "1000000",
        "billion" => "1000000000",
        "trillion" => "1000000000000",
        _ => return None,
    })
}

/// Words of one to three letters that are units behind a number; longer words are where they stand apart from it.
pub(super) fn is_unit(word: &str) -> bool {
    const UNITS: [&str; 60] = [
        "cm", "mm", "km", "dm", "nm", "ft", "yd", "mi", "kg", "mg", "lb", "lbs", "oz", "ml", "mL", "dL",
        "cL", "kL", "sec", "min", "hr", "hrs", "mph", "kph", "kmh", "kmph", "sq", "cu", "cc", "gal", "qt",
        "pt", "tsp", "deg", "rad", "usd", "USD", "eur", "EUR", "day", "men", "pie", "egg", "box", "cup",
        "bag", "car", "cat", "dog", "cow", "hen", "toy", "kid", "boy", "way", "fps", "Hz", "kHz", "MHz",
        "am",
    ];
    UNITS.contains(&word)
}
