//! From text to tokens.

use super::rational::Rational;
use super::token::{
    Bracket, Relation, Token, character, command, is_appearance, is_text, is_unit, multiple, named,
};

/// Longer texts are no answers; with it every later step is bounded.
pub(super) const LONGEST: usize = 2000;

/// The tokens of a text; none where something in it is not known.
pub(super) fn tokens(text: &str) -> Option<Vec<Token>> {
    if text.len() > LONGEST {
        return None;
    }
    let mut lexer = Lexer { rest: text, tokens: Vec::new(), groups: Vec::new(), brackets: 0, gap: false };
    while lexer.step()? {}
    Some(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    tokens: Vec<Token>,
    /// Of every open group, whether another argument follows it, which may be a single digit.
    groups: Vec<bool>,
    /// Open brackets of collections, in which a comma separates: `(1,234)` is a pair.
    brackets: usize,
    /// Whether a space that was written as a command has just gone by.
    gap: bool,
}

impl<'a> Lexer<'a> {
    /// Takes one token; false at the end.
    fn step(&mut self) -> Option<bool> {
        let trimmed = self.rest.trim_start();
        let gap = std::mem::take(&mut self.gap);
        let spaced = gap || trimmed.len() < self.rest.len();
        self.rest = trimmed;
        let Some(c) = self.rest.chars().next() else { return Some(false) };
        let next = self.rest[c.len_utf8()..].chars().next();
        match c {
            '\\' => return self.escaped().map(|()| true),
            '0'..='9' => self.number(),
            '.' if next.is_some_and(|c| c.is_ascii_digit()) => self.number(),
            _ if c.is_alphabetic() && named_character(c).is_none() => self.letters(spaced),
            // Dollars are marks of mathematics, or a currency, and quotation marks say nothing.
            '~' => {
                self.skip(c);
                self.gap = true;
            }
            '$' | '"' | '\u{20ac}' | '\u{a3}' | '\u{a5}' | '\u{20b9}' => self.skip(c),
            '{' => {
                self.skip(c);
                // `1{,}234` was taken with its number; `{,}` alone is a comma.
                self.groups.push(false);
                self.tokens.push(Token::Open(Bracket::Group));
            }
            '}' => {
                self.skip(c);
                self.tokens.push(Token::Close(Bracket::Group));
                if self.groups.pop()? {
                    self.single_digit();
                }
            }
            '^' => {
                self.skip(c);
                let degree = ["\\circ", "{\\circ}", "{\\circ }", "{ \\circ }", "\\degree", "\u{b0}"];
                let rest = self.rest.trim_start();
                match degree.into_iter().find_map(|mark| rest.strip_prefix(mark)) {
                    Some(rest) => {
                        self.rest = rest;
                        self.tokens.push(Token::Degree);
                    }
                    None => self.tokens.push(Token::Power),
                }
            }
            '*' if next == Some('*') => {
                self.rest = &self.rest[2..];
                self.tokens.push(Token::Power);
            }
            '<' | '>' | '!' if next == Some('=') => {
                self.rest = &self.rest[2..];
                self.tokens.push(Token::Relation(match c {
                    '<' => Relation::LessEqual,
                    '>' => Relation::GreaterEqual,
                    _ => Relation::NotEqual,
                }));
            }
            '.' => {
                self.skip(c);
                // A full stop ends; what stands behind it is another sentence.
                return self
                    .rest
                    .trim_matches(|c: char| c.is_whitespace() || "$.}".contains(c))
                    .is_empty()
                    .then_some(true);
            }
            // A colon is a division of ratios, and not read.
            _ => {
                self.skip(c);
                let token = character(c)?;
                self.track(&token);
                self.tokens.push(token);
            }
        }
        Some(true)
    }

    fn skip(&mut self, c: char) {
        self.rest = &self.rest[c.len_utf8()..];
    }

    fn track(&mut self, token: &Token) {
        match token {
            Token::Open(Bracket::Round | Bracket::Square | Bracket::Brace | Bracket::Angle) => {
                self.brackets += 1;
            }
            Token::Close(Bracket::Round | Bracket::Square | Bracket::Brace | Bracket::Angle) => {
                self.brackets = self.brackets.saturating_sub(1);
            }
            _ => {}
        }
    }

    /// What begins with a backslash.
    fn escaped(&mut self) -> Option<()> {
        let after = &self.rest[1..];
        let name_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let name = &after[..name_end];
        if name.is_empty() {
            let c = after.chars().next()?;
            self.rest = &after[c.len_utf8()..];
            match c {
                '{' => self.push(Token::Open(Bracket::Brace)),
                '}' => self.push(Token::Close(Bracket::Brace)),
                '|' => self.push(Token::Bar),
                '%' => self.push(Token::Percent),
                // Of a matrix, or a doubled backslash in front of a command.
                '\\' if self.rest.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
                    && !self.tokens.contains(&Token::MatrixBegin) =>
                {
                    self.rest = after;
                }
                '\\' => self.push(Token::Row),
                ',' | ';' | ':' | ' ' | '\n' => self.gap = true,
                // Delimiters of mathematics, currencies.
                '!' | '(' | ')' | '[' | ']' | '$' | '&' | '#' | '_' => {}
                _ => return None,
            }
            return Some(());
        }
        self.rest = &after[name_end..];
        if is_appearance(name) {
            // `\left.` is no bracket.
            if matches!(name, "left" | "right")
                && let Some(rest) = self.rest.trim_start().strip_prefix('.')
            {
                self.rest = rest;
            }
            return Some(());
        }
        if is_text(name) {
            return self.text(name);
        }
        match name {
            "begin" | "end" => {
                let kind = self.argument()?;
                let matrix =
                    ["matrix", "pmatrix", "bmatrix", "Bmatrix", "array", "smallmatrix"].contains(&kind);
                if !matrix {
                    return None;
                }
                if kind == "array" && name == "begin" {
                    self.argument();
                }
                self.tokens.push(if name == "begin" { Token::MatrixBegin } else { Token::MatrixEnd });
            }
            "pounds" | "euro" => {}
            "overline" | "bar" | "vec" | "hat" | "overrightarrow" | "tilde" => {
                let inside = self.argument()?;
                self.tokens.push(Token::Symbol(format!("{name} {}", inside.trim())));
            }
            "degree" => self.tokens.push(Token::Degree),
            "backslash" | "setminus" => return None,
            _ => match command(name) {
                Some(token) => {
                    let (frac, root) = (matches!(token, Token::Frac | Token::Binom), token == Token::Sqrt);
                    self.push(token);
                    if frac {
                        self.two_arguments();
                    } else if root {
                        // The bracket of its degree holds no collection.
                    }
                }
                // A Greek letter is a symbol, and nobody writes another command that has a meaning.
                None => self.tokens.push(Token::Symbol(greek(name)?.to_owned())),
            },
        }
        Some(())
    }

    fn push(&mut self, token: Token) {
        self.track(&token);
        self.tokens.push(token);
    }

    /// The arguments of a fraction may be single digits: `\frac12`, `\frac1{2}`, `\frac{1}2`.
    fn two_arguments(&mut self) {
        let rest = self.rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            self.rest = inside;
            self.groups.push(true);
            self.tokens.push(Token::Open(Bracket::Group));
        } else if self.single_digit() {
            self.single_digit();
        }
    }

    fn single_digit(&mut self) -> bool {
        let rest = self.rest.trim_start();
        let digit = rest.chars().next().filter(char::is_ascii_digit);
        if let Some(digit) = digit {
            self.rest = &rest[1..];
            self.tokens.push(Token::Number { digits: digit.to_string(), scale: None });
        }
        digit.is_some()
    }

    /// `{…}` as it stands.
    fn argument(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let inside = rest.strip_prefix('{')?;
        let mut depth = 1;
        let end = inside.char_indices().find_map(|(at, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(at)
        })?;
        self.rest = &inside[end + 1..];
        Some(&inside[..end])
    }

    fn text(&mut self, name: &str) -> Option<()> {
        let rest = self.rest.trim_start();
        if !rest.starts_with('{') {
            // `\mathbf x`
            return Some(());
        }
        let inside = self.argument()?;
        let words = inside.trim().trim_matches(|c: char| ".,:;$".contains(c)).trim();
        if words.is_empty() {
            // `\text{, }` separates.
            if inside.contains([',', ';']) {
                self.tokens.push(Token::Separator);
            }
            return Some(());
        }
        let (first, others) = words.split_once(' ').unwrap_or((words, ""));
        if self.multiply(first) {
            if !others.is_empty() {
                self.tokens.push(Token::Text(others.to_owned()));
            }
            return Some(());
        }
        let bare = words.trim_matches(|c: char| "()".contains(c));
        if name == "mathbb" && bare == "R" {
            self.tokens.push(Token::Reals);
        } else if let Some(token) = named(&words.to_lowercase()) {
            self.push(token);
        } else if words == "%" || words == "\\%" {
            self.tokens.push(Token::Percent);
        } else if bare == "i" || bare == "e" {
            self.tokens.push(if bare == "i" { Token::Imaginary } else { Token::Euler });
        } else if bare.chars().count() == 1 && bare.chars().all(char::is_alphabetic) && !self.after_number() {
            self.tokens.push(Token::Symbol(bare.to_owned()));
        } else if words.starts_with(|c: char| c.is_ascii_digit() || "-+".contains(c)) {
            // A number in text is one.
            if self.groups.len() > 40 {
                return None;
            }
            let mut inner = Lexer {
                rest: words,
                tokens: Vec::new(),
                groups: Vec::new(),
                brackets: self.brackets,
                gap: false,
            };
            while inner.step()? {}
            self.tokens.append(&mut inner.tokens);
        } else {
            self.tokens.push(Token::Text(words.to_owned()));
        }
        Some(())
    }

    fn after_number(&self) -> bool {
        matches!(
            self.tokens.last(),
            Some(
                Token::Number { .. }
                    | Token::Fraction(_)
                    | Token::Close(_)
                    | Token::Pi
                    | Token::Text(_)
                    | Token::Infinity
                    | Token::Percent
            )
        )
    }

    /// `5 million` is a product.
    fn multiply(&mut self, word: &str) -> bool {
        let number = matches!(self.tokens.last(), Some(Token::Number { .. }));
        let Some(digits) = multiple(word).filter(|_| number) else { return false };
        self.tokens.push(Token::Times);
        self.tokens.push(Token::Number { digits: digits.to_owned(), scale: None });
        true
    }

    fn letters(&mut self, spaced: bool) {
        let end = self
            .rest
            .find(|c: char| !c.is_alphabetic() || named_character(c).is_some())
            .unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let lower = word.to_lowercase();
        if let Some(token) = named(&lower).filter(|_| word.len() > 1 && word[1..] == lower[1..]) {
            self.rest = &self.rest[end..];
            self.push(token);
            return;
        }
        let long = word.chars().count() >= 4 && spaced;
        if self.multiply(word) {
            self.rest = &self.rest[end..];
            return;
        }
        if self.after_number() && (is_unit(word) || long) {
            self.rest = &self.rest[end..];
            self.tokens.push(Token::Text(word.to_owned()));
            return;
        }
        for c in word.chars() {
            self.tokens.push(match c {
                'e' => Token::Euler,
                'i' => Token::Imaginary,
                other => Token::Symbol(other.to_string()),
            });
        }
        self.rest = &self.rest[end..];
    }

    fn number(&mut self) {
        let mut digits = String::new();
        self.digits(&mut digits);
        if !digits.starts_with('0') && (1..=3).contains(&digits.len()) {
            while let Some(rest) = self.thousands() {
                digits.push_str(&rest[..3]);
                self.rest = &rest[3..];
            }
        }
        let mut scale = None;
        if let Some(rest) = self.rest.strip_prefix('.') {
            if rest.starts_with(|c: char| c.is_ascii_digit()) {
                self.rest = rest;
                let whole = digits.len();
                self.digits(&mut digits);
                scale = u32::try_from(digits.len() - whole).ok();
            }
            if let Some(value) = self.repeating(&digits, scale) {
                self.tokens.push(Token::Fraction(value));
                return;
            }
        }
        self.tokens.push(Token::Number { digits, scale });
    }

    fn digits(&mut self, into: &mut String) {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        into.push_str(&self.rest[..end]);
        self.rest = &self.rest[end..];
    }

    /// What follows a separator of thousands: three digits and no fourth.
    fn thousands(&self) -> Option<&'a str> {
        let marks = ["{,}", ",\\!", "\\,", "\\!"];
        let comma = (self.brackets == 0).then_some(",");
        let rest = marks.into_iter().chain(comma).find_map(|mark| self.rest.strip_prefix(mark))?;
        let count = rest.bytes().take_while(u8::is_ascii_digit).count();
        (count == 3).then_some(rest)
    }

    /// `0.1\overline{6}`: digits that repeat without an end, exactly.
    fn repeating(&mut self, digits: &str, scale: Option<u32>) -> Option<Rational> {
        let after_point = if scale.is_some() { self.rest } else { self.rest.strip_prefix('.')? };
        let inside = after_point.strip_prefix("\\overline")?.trim_start().strip_prefix('{')?;
        let (repeated, rest) = inside.split_once('}')?;
        if repeated.is_empty() || !repeated.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let scale = scale.unwrap_or(0);
        let nines = 10_i128.checked_pow(u32::try_from(repeated.len()).ok()?)?.checked_sub(1)?;
        let below = nines.checked_mul(10_i128.checked_pow(scale)?)?;
        let value = Rational::decimal(digits, scale)?.plus(Rational::new(repeated.parse().ok()?, below)?)?;
        self.rest = rest;
        Some(value)
    }
}

/// Letters that are tokens by themselves.
fn named_character(c: char) -> Option<Token> {
    character(c)
}

fn greek(name: &str) -> Option<&str> {
    const LETTERS: [&str; 38] = [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "varrho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Upsilon",
        "Phi",
        "Psi",
        "Omega",
        "ell",
    ];
    LETTERS.contains(&name).then_some(name)
}
