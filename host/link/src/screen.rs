//! Which RPC messages may pass.
//!
//! capnp-rpc implements a protocol in which either side may call, pass capabilities on and resolve
//! promises, and it panics or leaks in states that only a strange peer brings about. Ours needs a
//! small part of it: one side asks, the other answers, and one capability is handed over, in answer
//! to `hello`. Everything else ends the connection here, before capnp-rpc sees it.

use std::collections::HashMap;

use capnp_rpc::rpc_capnp::{call, cap_descriptor, message, message_target, return_};

use crate::wire::Side;

/// Calls in flight may be doubled by calls that are just being answered; bootstrap and hello come on top.
const QUESTIONS_PER_CALL: usize = 2;
const QUESTIONS_EXTRA: usize = 16;
/// Our only promised capability is a bootstrap's or a hello's answer: one step deep.
const TRANSFORM_STEPS_MAX: u32 = 2;

/// What becomes of a message that came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    /// Not for capnp-rpc, and no reason to complain.
    Swallow,
}

/// The state of a question that we were asked or that we asked.
#[derive(Debug, PartialEq, Eq)]
enum Question {
    Open,
    /// Answered with a message that asks for a `Finish`.
    Unfinished,
}

/// The questions of one connection.
pub(crate) struct Screen {
    side: Side,
    questions: HashMap<u32, Question>,
    questions_max: usize,
    open: usize,
}

impl Screen {
    pub(crate) fn new(side: Side, calls_in_flight: usize) -> Self {
        let questions_max = calls_in_flight.saturating_mul(QUESTIONS_PER_CALL).saturating_add(QUESTIONS_EXTRA);
        Screen { side, questions: HashMap::new(), questions_max, open: 0 }
    }

    /// How many questions are not answered yet.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Looks at a message from the peer.
    pub(crate) fn inbound(&mut self, message: message::Reader<'_>) -> capnp::Result<Verdict> {
        match (self.side, message.which()?) {
            (_, message::Abort(_)) => Ok(Verdict::Pass),
            (Side::Server, message::Bootstrap(bootstrap)) => self.asked(bootstrap?.get_question_id()),
            (Side::Server, message::Call(call)) => {
                let call = call?;
                check_call(call)?;
                self.asked(call.get_question_id())
            }
            (Side::Server, message::Finish(finish)) => Ok(self.finished(finish?.get_question_id())),
            // Our own references to what we imported; their counts are checked by capnp-rpc.
            (Side::Server, message::Release(_)) => Ok(Verdict::Pass),
            (Side::Client, message::Return(answer)) => {
                let answer = answer?;
                check_return(answer)?;
                match self.questions.remove(&answer.get_answer_id()) {
                    Some(_) => self.open -= 1,
                    None => return Err(refuse("an answer that nobody waits for")),
                }
                Ok(Verdict::Pass)
            }
            _ => Err(refuse("an RPC message of a kind that has no place in this protocol")),
        }
    }

    /// Looks at a message of our own, which keeps the questions' states up to date.
    pub(crate) fn outbound(&mut self, message: message::Reader<'_>) -> capnp::Result<()> {
        match (self.side, message.which()?) {
            (Side::Server, message::Return(answer)) => {
                let answer = answer?;
                let id = answer.get_answer_id();
                if answer.get_no_finish_needed() {
                    self.questions.remove(&id);
                } else {
                    self.questions.insert(id, Question::Unfinished);
                }
                self.open = self.open.saturating_sub(1);
            }
            (Side::Client, message::Bootstrap(bootstrap)) => {
                self.asked(bootstrap?.get_question_id())?;
            }
            (Side::Client, message::Call(call)) => {
                self.asked(call?.get_question_id())?;
            }
            _ => {}
        }
        Ok(())
    }

    fn asked(&mut self, id: u32) -> capnp::Result<Verdict> {
        if self.side == Side::Server && self.questions.len() >= self.questions_max {
            return Err(refuse("more unanswered or unfinished calls than its limit allows"));
        }
        if self.questions.insert(id, Question::Open).is_some() {
            return Err(refuse("a question with the number of another"));
        }
        self.open += 1;
        Ok(Verdict::Pass)
    }

    /// The `Finish` of an unanswered call would make capnp-rpc drop the call, never answer it, and keep
    /// its table entry: let the call run to its answer instead. Who wants to cancel has `Host.cancel`.
    fn finished(&mut self, id: u32) -> Verdict {
        match self.questions.get(&id) {
            Some(Question::Unfinished) => {
                self.questions.remove(&id);
                Verdict::Pass
            }
            Some(Question::Open) | None => Verdict::Swallow,
        }
    }
}

fn check_call(call: call::Reader<'_>) -> capnp::Result<()> {
    match call.get_send_results_to().which()? {
        call::send_results_to::Caller(()) => {}
        _ => return Err(refuse("a call whose results should go elsewhere")),
    }
    if let message_target::PromisedAnswer(answer) = call.get_target()?.which()?
        && answer?.get_transform()?.len() > TRANSFORM_STEPS_MAX
    {
        return Err(refuse("a call on a capability too many steps away"));
    }
    if !call.get_params()?.get_cap_table()?.is_empty() {
        return Err(refuse("a call that hands over capabilities"));
    }
    Ok(())
}

fn check_return(answer: return_::Reader<'_>) -> capnp::Result<()> {
    match answer.which()? {
        return_::Results(results) => {
            let caps = results?.get_cap_table()?;
            if caps.len() > 1 {
                return Err(refuse("an answer with several capabilities"));
            }
            match caps.iter().next().map(|cap| cap.which()).transpose()? {
                None | Some(cap_descriptor::None(())) | Some(cap_descriptor::SenderHosted(_)) => Ok(()),
                Some(_) => Err(refuse("an answer with a capability that is not its own")),
            }
        }
        return_::Exception(_) => Ok(()),
        _ => Err(refuse("an answer that is none")),
    }
}

fn refuse(what: &str) -> capnp::Error {
    capnp::Error::failed(format!("the peer sent {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::message::Builder;

    type Build = fn(message::Builder<'_>);

    fn ask(screen: &mut Screen, build: Build, inbound: bool) -> &'static str {
        let mut message = Builder::new_default();
        build(message.init_root());
        let root = message.get_root_as_reader().unwrap();
        let verdict = if inbound { screen.inbound(root) } else { screen.outbound(root).map(|()| Verdict::Pass) };
        match verdict {
            Ok(Verdict::Pass) => "pass",
            Ok(Verdict::Swallow) => "swallow",
            Err(_) => "refuse",
        }
    }

    fn call(to: message::Builder<'_>) -> call::Builder<'_> {
        let mut call = to.init_call();
        call.set_question_id(7);
        call.reborrow().init_target().set_imported_cap(0);
        call
    }

    fn give_back(to: message::Builder<'_>) -> return_::Builder<'_> {
        let mut answer = to.init_return();
        answer.set_answer_id(7);
        answer
    }

    /// Each case begins with an open question, number 7, of the client's.
    #[test]
    fn only_what_this_protocol_needs_may_pass() {
        use Side::{Client, Server};
        let cases: &[(Side, &str, Build, &str)] = &[
            (Server, "abort", |m| _ = m.init_abort(), "pass"),
            (Client, "abort", |m| _ = m.init_abort(), "pass"),
            (Server, "bootstrap", |m| m.init_bootstrap().set_question_id(1), "pass"),
            (Client, "bootstrap", |m| m.init_bootstrap().set_question_id(1), "refuse"),
            (Server, "call", |m| call(m).set_question_id(8), "pass"),
            (Client, "call", |m| call(m).set_question_id(8), "refuse"),
            (Server, "same number", |m| _ = call(m), "refuse"),
            (
                Server,
                "elsewhere",
                |m| {
                    let mut call = call(m);
                    call.set_question_id(8);
                    call.get_send_results_to().set_yourself(());
                },
                "refuse",
            ),
            (
                Server,
                "far target",
                |m| {
                    let mut call = call(m);
                    call.set_question_id(8);
                    call.init_target().init_promised_answer().init_transform(3);
                },
                "refuse",
            ),
            (
                Server,
                "near target",
                |m| {
                    let mut call = call(m);
                    call.set_question_id(8);
                    call.init_target().init_promised_answer().init_transform(2);
                },
                "pass",
            ),
            (
                Server,
                "capability in a call",
                |m| {
                    let mut call = call(m);
                    call.set_question_id(8);
                    call.init_params().init_cap_table(1);
                },
                "refuse",
            ),
            (Server, "finish too early", |m| m.init_finish().set_question_id(7), "swallow"),
            (Server, "finish of nothing", |m| m.init_finish().set_question_id(9), "swallow"),
            (Server, "release", |m| m.init_release().set_id(0), "pass"),
            (Client, "release", |m| m.init_release().set_id(0), "refuse"),
            (Server, "return", |m| _ = give_back(m).init_results(), "refuse"),
            (Client, "return", |m| _ = give_back(m).init_results(), "pass"),
            (Client, "return of another", |m| m.init_return().set_answer_id(8), "refuse"),
            (Client, "exception", |m| _ = give_back(m).init_exception(), "pass"),
            (Client, "canceled", |m| give_back(m).set_canceled(()), "refuse"),
            (Client, "elsewhere", |m| give_back(m).set_results_sent_elsewhere(()), "refuse"),
            (Client, "other question", |m| give_back(m).set_take_from_other_question(7), "refuse"),
            (Client, "its own", |m| give_back(m).init_results().init_cap_table(1).get(0).set_sender_hosted(1), "pass"),
            (
                Client,
                "promise",
                |m| give_back(m).init_results().init_cap_table(1).get(0).set_sender_promise(1),
                "refuse",
            ),
            (Client, "ours", |m| give_back(m).init_results().init_cap_table(1).get(0).set_receiver_hosted(1), "refuse"),
            (Client, "two", |m| _ = give_back(m).init_results().init_cap_table(2), "refuse"),
            (Server, "resolve", |m| _ = m.init_resolve(), "refuse"),
            (Client, "resolve", |m| _ = m.init_resolve(), "refuse"),
            (Server, "disembargo", |m| _ = m.init_disembargo(), "refuse"),
            (Server, "provide", |m| _ = m.init_provide(), "refuse"),
            (Server, "accept", |m| _ = m.init_accept(), "refuse"),
            (Server, "join", |m| _ = m.init_join(), "refuse"),
            (Server, "unimplemented", |m| _ = m.init_unimplemented(), "refuse"),
        ];
        for &(side, name, build, expected) in cases {
            let mut screen = Screen::new(side, 1);
            // A server hears the question, a client asks it.
            assert_eq!(ask(&mut screen, |m| _ = call(m), side == Server), "pass");
            assert_eq!(ask(&mut screen, build, true), expected, "{side:?}: {name}");
        }
    }

    #[test]
    fn questions_end_with_their_answer_or_their_finish() {
        let mut screen = Screen::new(Side::Server, 1);
        let question: Build = |m| _ = call(m);
        let answer: Build = |m| give_back(m).set_no_finish_needed(true);
        let answer_to_finish: Build = |m| _ = give_back(m).init_exception();
        let finish: Build = |m| m.init_finish().set_question_id(7);
        for (inbound, build, expected, open) in [
            (true, question, "pass", 1),
            (false, answer, "pass", 0),
            (true, finish, "swallow", 0),
            (true, question, "pass", 1),
            (false, answer_to_finish, "pass", 0),
            (true, question, "refuse", 0),
        ] {
            assert_eq!(ask(&mut screen, build, inbound), expected);
            assert_eq!(screen.open(), open);
        }
        assert_eq!(ask(&mut Screen::new(Side::Server, 1), finish, true), "swallow");
    }

    #[test]
    fn unfinished_questions_are_bounded() {
        let mut screen = Screen::new(Side::Server, 3);
        let passed = (0..100).take_while(|&id| screen.asked(id).is_ok()).count();
        assert_eq!(passed, 3 * QUESTIONS_PER_CALL + QUESTIONS_EXTRA);
    }
}
