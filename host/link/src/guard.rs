//! What a peer may do: the one place where it is looked at, before a call is as much as read.
//!
//! The host that a peer gets hold of is this [`Guarded`] one. A method that is not in the table is nobody's.

use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use capnp::any_pointer;
use capnp::capability::{
    DispatchCallResult, DynClientHook, FromClientHook, FromServer, Params, Promise, Results, Server,
};

use crate::convert::write_fault;
use crate::edgent_capnp::host;
use crate::error::{Fault, FaultKind};
use crate::trust::{KnownPeer, Right};

/// What a method needs: one of these rights; none: to be known.
struct Method {
    name: &'static str,
    needs: &'static [Right],
}

const fn method(name: &'static str, needs: &'static [Right]) -> Method {
    Method { name, needs }
}

/// By their numbers in the schema.
const METHODS: [Method; 23] = [
    method("describe", &[Right::Ask, Right::Read]),
    method("installPlan", &[Right::Ask]),
    method("infer", &[Right::Ask]),
    method("probe", &[]),
    method("stats", &[Right::Read]),
    method("profile", &[Right::Ask]),
    method("ask", &[Right::Ask]),
    method("cancel", &[]),
    method("offer", &[Right::Push]),
    method("putBlob", &[Right::Push]),
    method("install", &[Right::Push]),
    method("rollback", &[Right::Push]),
    method("versions", &[Right::Read]),
    method("manifest", &[Right::Read]),
    method("blob", &[Right::Read]),
    method("retire", &[Right::Push]),
    method("sign", &[Right::Push]),
    method("signatures", &[Right::Read]),
    method("prepare", &[Right::Push]),
    method("offerPiece", &[Right::Push]),
    method("pin", &[Right::Push]),
    method("leaving", &[]),
    method("edges", &[Right::Read]),
];

/// Whether a peer may call the method of this number.
fn check(peer: &KnownPeer, number: u16) -> Result<(), Fault> {
    let Some(Method { name, needs }) = METHODS.get(usize::from(number)) else {
        return Err(Fault::new(FaultKind::Unsupported, "the host is older than this call"));
    };
    match needs {
        [] => Ok(()),
        needs if needs.iter().any(|right| peer.may.contains(right)) => Ok(()),
        [right, ..] => {
            Err(denied(peer, &format!("`{right}` here, which `{name}` needs"), &format!("\"{right}\" in `may`")))
        }
    }
}

/// Whether a peer may ask about this model; no name: the host has none such.
pub(crate) fn check_model(peer: &KnownPeer, model: Option<&str>) -> Result<(), Fault> {
    match (&peer.models, model) {
        (None, _) => Ok(()),
        (Some(models), Some(model)) if models.contains(model) => Ok(()),
        (Some(_), Some(model)) => Err(denied(peer, &format!("ask about '{model}' here"), "its name in `models`")),
        (Some(_), None) => Err(denied(peer, "ask about that model here", "its name in `models`")),
    }
}

fn denied(peer: &KnownPeer, what: &str, grant: &str) -> Fault {
    let KnownPeer { name, fingerprint, .. } = peer;
    let message = format!(
        "'{name}' may not {what}: whoever runs this host can grant it ({grant} of {fingerprint} in its peers.toml, \
         or `edgent pair --fingerprint`)"
    );
    Fault::new(FaultKind::Denied, message)
}

/// A server that knows who calls it.
pub(crate) trait Caller {
    /// Who calls; nobody in particular on a plain connection, where nothing is known of anybody.
    fn caller(&self) -> Result<Option<Arc<KnownPeer>>, Fault>;
}

/// The host, behind its guard.
pub(crate) struct Guarded(pub(crate) host::Client);

impl FromClientHook for Guarded {
    fn new(hook: Box<DynClientHook>) -> Self {
        Guarded(host::Client::new(hook))
    }

    fn into_client_hook(self) -> Box<DynClientHook> {
        self.0.into_client_hook()
    }

    fn as_client_hook(&self) -> &DynClientHook {
        &*self.0.client.hook
    }
}

impl<S: host::Server + Caller + 'static> FromServer<S> for Guarded {
    type Dispatch = Guard<S>;

    fn from_server(server: Rc<S>) -> Guard<S> {
        Guard(<host::Client as FromServer<S>>::from_server(server))
    }
}

/// Lets a call through, or answers it.
pub(crate) struct Guard<S>(host::ServerDispatch<S>);

impl<S: host::Server + Caller> Server for Guard<S> {
    fn dispatch_call(
        self,
        interface: u64,
        number: u16,
        params: Params<any_pointer::Owned>,
        mut results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let allowed = self.caller().and_then(|caller| caller.map_or(Ok(()), |peer| check(&peer, number)));
        let Err(fault) = allowed else {
            return self.0.dispatch_call(interface, number, params, results);
        };
        // Every method that can be refused gives an outcome, and a fault looks the same in all of them.
        let outcome = results.get().init_as::<host::describe_results::Builder<'_>>().init_outcome();
        write_fault(outcome.init_fault(), &fault);
        DispatchCallResult::new(Promise::ok(()), false)
    }

    fn as_ptr(&self) -> usize {
        self.0.as_ptr()
    }
}

impl<S: host::Server> Deref for Guard<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0
    }
}

impl<S: host::Server> Clone for Guard<S> {
    fn clone(&self) -> Self {
        Guard(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Fingerprint;
    use std::collections::BTreeSet;

    /// The schema's own words, so that none is forgotten here.
    fn methods_of_the_schema() -> Vec<String> {
        let schema = include_str!("../../../schema/edgent.capnp");
        let host = schema.split("interface Host {").nth(1).unwrap().split("\n}").next().unwrap();
        let mut methods: Vec<(u16, String)> = host
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.trim().split_once(" @")?;
                let number = rest.split_once(" (")?.0.parse().ok()?;
                Some((number, name.to_owned()))
            })
            .collect();
        methods.sort();
        assert!(methods.iter().enumerate().all(|(index, (number, _))| index == usize::from(*number)), "{methods:?}");
        methods.into_iter().map(|(_, name)| name).collect()
    }

    fn who_may(may: &[Right]) -> KnownPeer {
        let may = may.iter().copied().collect();
        KnownPeer { name: "anna".to_owned(), fingerprint: Fingerprint::of(b"anna"), may, models: None }
    }

    #[test]
    fn every_method_of_the_schema_is_in_the_table() {
        assert_eq!(methods_of_the_schema(), METHODS.map(|method| method.name.to_owned()));
    }

    #[test]
    fn each_right_opens_its_methods_and_no_other() {
        let open = |may: &[Right]| -> Vec<&str> {
            let peer = who_may(may);
            let numbers = 0..METHODS.len() as u16;
            numbers
                .filter(|number| check(&peer, *number).is_ok())
                .map(|number| METHODS[usize::from(number)].name)
                .collect()
        };
        assert_eq!(open(&[]), ["probe", "cancel", "leaving"]);
        assert_eq!(open(&[Right::Serve]), ["probe", "cancel", "leaving"]);
        let asks = ["describe", "installPlan", "infer", "probe", "profile", "ask", "cancel", "leaving"];
        assert_eq!(open(&[Right::Ask]), asks);
        let pushes = [
            "probe",
            "cancel",
            "offer",
            "putBlob",
            "install",
            "rollback",
            "retire",
            "sign",
            "prepare",
            "offerPiece",
            "pin",
            "leaving",
        ];
        assert_eq!(open(&[Right::Push]), pushes);
        let reads =
            ["describe", "probe", "stats", "cancel", "versions", "manifest", "blob", "signatures", "leaving", "edges"];
        assert_eq!(open(&[Right::Read]), reads);
        assert_eq!(open(&Right::ALL).len(), METHODS.len());
    }

    #[test]
    fn a_refusal_names_the_right_and_where_to_grant_it() {
        let Fault { kind, message } = check(&who_may(&[Right::Ask]), 10).unwrap_err();
        assert_eq!(kind, FaultKind::Denied);
        for part in ["'anna'", "`push`", "`install`", "peers.toml", &Fingerprint::of(b"anna").to_string()] {
            assert!(message.contains(part), "{message}");
        }
        let unknown = check(&who_may(&Right::ALL), METHODS.len() as u16).unwrap_err();
        assert_eq!(unknown.kind, FaultKind::Unsupported);
    }

    /// A host that does nothing, for somebody who may do as much.
    struct Idle(KnownPeer);

    impl host::Server for Idle {}

    impl Caller for Idle {
        fn caller(&self) -> Result<Option<Arc<KnownPeer>>, Fault> {
            Ok(Some(Arc::new(self.0.clone())))
        }
    }

    /// By their numbers, as they come from the wire: refused by the guard, or let through to where nothing is done.
    #[tokio::test]
    async fn every_method_is_refused_to_who_may_nothing() {
        use crate::convert::read_fault;
        use crate::edgent_capnp::outcome;
        for (may, opens) in [(&[][..], 3), (&Right::ALL, METHODS.len())] {
            let Guarded(client) = capnp_rpc::new_client(Idle(who_may(may)));
            let mut let_through = 0;
            for number in 0..METHODS.len() as u16 {
                let call: capnp::capability::Request<host::describe_params::Owned, host::describe_results::Owned> =
                    client.client.new_call(host::_private::TYPE_ID, number, None);
                let Ok(response) = call.send().promise.await else {
                    let_through += 1;
                    continue;
                };
                let outcome = response.get().unwrap().get_outcome().unwrap();
                let Ok(outcome::Fault(fault)) = outcome.which() else { panic!("{number} was answered") };
                assert_eq!(read_fault(fault.unwrap()).unwrap().kind, FaultKind::Denied);
            }
            assert_eq!(let_through, opens);
        }
    }

    #[test]
    fn who_was_given_models_may_ask_about_no_others() {
        let mut peer = who_may(&[Right::Ask]);
        assert_eq!(check_model(&peer, Some("alex")), Ok(()));
        peer.models = Some(BTreeSet::from(["alex".to_owned()]));
        assert_eq!(check_model(&peer, Some("alex")), Ok(()));
        for other in [Some("vad"), None] {
            assert_eq!(check_model(&peer, other).unwrap_err().kind, FaultKind::Denied);
        }
    }
}
