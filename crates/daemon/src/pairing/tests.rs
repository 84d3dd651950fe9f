//! Both sides on real endpoints, with real homes.

use std::future::ready;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pacsync_protocol::crypto::Entropy;
use pacsync_protocol::grant::Role;
use pacsync_protocol::identity::{DeviceKeys, DeviceName};
use pacsync_protocol::pairing::{Consent, Offer, PairingCode, PairingError};
use pacsync_protocol::segment::SignedSegment;
use pacsync_store::Store;
use rand_core::OsRng;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::host::{self, Enrol, Hosting};
use super::join::{self, JoinError, Joining, Whereabouts};
use crate::control::api::PairEvent;
use crate::home::{self, FoundOptions, Home, HomeError, Joined};
use crate::net::{self, Discovery, Endpoint, NetConfig, PeerStanding};

/// Ends a test that hangs; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

fn rng() -> impl Entropy {
    OsRng
}

fn options(dir: &TempDir, name: &str) -> FoundOptions {
    FoundOptions {
        name: DeviceName::new(name).expect("a name"),
        root: dir.path().to_owned(),
        listen: None,
        discovery: Discovery::Off,
    }
}

/// A device of a pac that shows a code, with its core.
struct Pac {
    _dir: TempDir,
    endpoint: Endpoint,
    store: Store,
    home: home::Opened,
    address: SocketAddr,
}

impl Pac {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let home = Home::at(dir.path().join("home"));
        {
            let lock = home.lock().expect("locks");
            home::found(&lock, &options(&dir, "laptop"), 1, &mut rng()).expect("founds");
        }
        let opened = home.load().expect("loads");
        let store = home
            .open_store(opened.identity.clone(), &mut rng())
            .expect("opens");
        let (events, _) = mpsc::channel(16);
        let endpoint = Endpoint::bind(NetConfig {
            listen: Some("127.0.0.1:0".parse().expect("an address")),
            key: opened.identity.keys.sign.clone(),
            discovery_key: opened.identity.roster_keys.discovery(),
            standing: Arc::new(|_| PeerStanding::Unknown),
            discovery: Discovery::Off,
            events,
        })
        .expect("binds");
        let address = endpoint.local_addr();
        Self {
            _dir: dir,
            endpoint,
            store,
            home: opened,
            address,
        }
    }

    /// Offers a code.
    fn offer(&self, role: Role) -> (Hosting, Code) {
        let offer = Offer::new(role, 1000, &mut rng());
        let code = offer.code().clone();
        let (events, seen) = mpsc::channel(16);
        let (decide, decisions) = mpsc::channel(1);
        let (enrol, core) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let hosting = Hosting {
            net: self.endpoint.handle(),
            offer,
            now_ms: 1000,
            keys: self.home.identity.keys.clone(),
            name: self.home.config.name.clone(),
            events,
            decisions,
            enrol,
            cancel: cancel.clone(),
        };
        (
            hosting,
            Code {
                code,
                seen,
                decide,
                core,
                cancel,
            },
        )
    }

    /// Does what a core does until pairing has ended.
    async fn serve(&mut self, code: &mut Code, decision: host::Decision) -> Vec<PairEvent> {
        let mut events = vec![];
        loop {
            tokio::select! {
                event = code.seen.recv() => {
                    let Some(event) = event else { return events };
                    if matches!(event, PairEvent::Attempt { .. }) {
                        code.decide.send(decision).await.expect("is heard");
                    }
                    events.push(event);
                }
                Some(enrol) = code.core.recv() => {
                    let welcome = self.enrol(&enrol);
                    enrol.reply.send(Ok(welcome)).expect("is heard");
                }
            }
        }
    }

    fn enrol(&mut self, enrol: &Enrol) -> pacsync_protocol::pairing::Welcome {
        let peer = &enrol.peer;
        let identity = self.home.identity.clone();
        let entries = home::enrol_entries(
            self.store.roster(),
            &identity,
            &peer.device,
            peer.role,
            &mut rng(),
        )
        .expect("may");
        let roster = self.store.roster_space();
        let mut txn = self.store.begin().expect("begins");
        txn.append(&roster, entries, 5, &mut rng())
            .expect("appends");
        txn.commit().expect("commits");
        let addresses = vec![self.address.to_string()];
        home::welcome(&self.store, &self.home.home_space, peer.role, addresses).expect("is made")
    }

    fn members(&self) -> usize {
        self.store.roster().members().count()
    }
}

struct Code {
    code: PairingCode,
    seen: mpsc::Receiver<PairEvent>,
    decide: mpsc::Sender<host::Decision>,
    core: mpsc::Receiver<Enrol>,
    cancel: CancellationToken,
}

impl Code {
    fn other_words(&self) -> PairingCode {
        let text = self.code.reveal();
        let right = text.contains("abandon-ability");
        let words = if right {
            "ability-abandon"
        } else {
            "abandon-ability"
        };
        PairingCode::parse(&format!("{:04}-{words}", self.code.slot())).expect("a code")
    }

    fn other_slot(&self) -> PairingCode {
        let text = self.code.reveal();
        let (_, words) = text.split_once('-').expect("has words");
        let slot = (self.code.slot() + 1) % 10_000;
        PairingCode::parse(&format!("{slot:04}-{words}")).expect("a code")
    }
}

/// A device without a pac.
struct Newcomer {
    dir: TempDir,
    keys: DeviceKeys,
}

impl Newcomer {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self {
            dir,
            keys: DeviceKeys::generate(&mut rng()),
        }
    }

    fn home(&self) -> Home {
        Home::at(self.dir.path().join("home"))
    }

    async fn join(
        &self,
        code: PairingCode,
        address: SocketAddr,
        decision: join::Decision,
    ) -> Result<Joined, JoinError> {
        let options = options(&self.dir, "phone");
        let lock = self.home().lock()?;
        let joining = Joining {
            code,
            whereabouts: Whereabouts::Address(address.to_string()),
            keys: self.keys.clone(),
            name: options.name.clone(),
        };
        join::run(
            joining,
            |host| {
                assert_eq!(host.name.as_str(), "laptop");
                ready(decision)
            },
            |host, welcome| {
                home::store_welcome(
                    &lock,
                    &options,
                    &self.keys,
                    host.role,
                    welcome,
                    6,
                    &mut rng(),
                )
            },
        )
        .await
    }
}

const YES: host::Decision = host::Decision::Accept(Consent::Person);

#[track_caller]
fn last(events: &[PairEvent]) -> &PairEvent {
    events.last().expect("ends with an event")
}

async fn patiently<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("does not hang")
}

#[tokio::test]
async fn a_code_makes_a_device() {
    let mut pac = Pac::new();
    let newcomer = Newcomer::new();
    let (hosting, mut code) = pac.offer(Role::Admin);
    let (typed, address) = (code.code.clone(), pac.address);
    let (end, events, joined) = patiently(async {
        tokio::join!(
            host::run(hosting),
            pac.serve(&mut code, YES),
            newcomer.join(typed, address, join::Decision::Accept),
        )
    })
    .await;
    let id = newcomer.keys.id().to_string();
    let (name, device) = ("phone".to_owned(), id.clone());
    assert_eq!(
        events,
        [
            PairEvent::Attempt {
                name: name.clone(),
                device: device.clone()
            },
            PairEvent::Enrolled { name, device },
        ]
    );
    assert_eq!(&end, last(&events));
    let joined = joined.expect("joins");
    assert_eq!(joined.devices, 2);
    assert_eq!(joined.home_space, pac.home.home_space);

    // The newcomer's home opens, knows both, and can speak for itself.
    let home = newcomer.home();
    let opened = home.load().expect("loads");
    assert_eq!(opened.config.addresses, [address.to_string()]);
    let mut store = home
        .open_store(opened.identity.clone(), &mut rng())
        .expect("opens");
    assert_eq!(store.roster().members().count(), 2);
    let own = store
        .roster()
        .member(&opened.identity.keys.id())
        .expect("is in");
    assert_eq!(own.grant.role, Role::Admin);
    let mut introduce = || {
        let mut txn = store.begin().expect("begins");
        let (identity, name) = (&opened.identity, &opened.config.name);
        let new = home::introduce(&mut txn, identity, &opened.home_space, name, 7, &mut rng())
            .expect("introduces itself");
        (new, txn.commit().expect("commits").segments)
    };
    let (new, segments) = introduce();
    assert!(new && !segments.is_empty());
    assert!(!introduce().0, "once is enough");

    // What it says is taken by the host.
    let mut txn = pac.store.begin().expect("begins");
    for segment in segments {
        let segment = SignedSegment::parse(&segment.bytes)
            .expect("parses")
            .verify()
            .expect("holds");
        txn.hold(&segment).expect("works").expect("is taken");
    }
    txn.apply(8, &mut rng()).expect("applies");
    txn.commit().expect("commits");
    assert_eq!(pac.store.quarantine().expect("reads"), Vec::<String>::new());
    let device = newcomer.keys.id();
    let placement = pac.store.roster().placement(&device, &joined.home_space);
    assert!(placement.is_some_and(|placement| placement.attached));
    let profile = pacsync_store::documents::profile_id(&device);
    let profile = pac
        .store
        .document(&joined.home_space, &profile)
        .expect("reads");
    assert_eq!(
        profile.get("name"),
        Some(&pacsync_store::documents::Setting::Text("phone".to_owned()))
    );
}

#[tokio::test]
async fn wrong_words_burn_the_code_and_both_sides_say_so() {
    let mut pac = Pac::new();
    let newcomer = Newcomer::new();
    let (hosting, mut code) = pac.offer(Role::Member);
    let (right, wrong, address) = (code.code.clone(), code.other_words(), pac.address);
    let (_, events, joined) = patiently(async {
        tokio::join!(
            host::run(hosting),
            pac.serve(&mut code, YES),
            newcomer.join(wrong, address, join::Decision::Accept),
        )
    })
    .await;
    assert_eq!(events, [PairEvent::WrongCode]);
    let error = joined.expect_err("does not join");
    assert!(
        matches!(error, JoinError::Pairing(PairingError::WrongCode)),
        "{error}"
    );
    assert!(error.hint().contains("new code"), "{}", error.hint());
    assert_eq!(pac.members(), 1);
    assert!(!newcomer.home().has_pac().expect("looks"));

    let again = patiently(newcomer.join(right, address, join::Decision::Accept)).await;
    let error = again.expect_err("the code is burnt");
    assert!(
        matches!(
            error,
            JoinError::UnknownSlot { .. } | JoinError::NoAnswer { .. }
        ),
        "{error}"
    );
    assert_eq!(pac.members(), 1);
}

#[tokio::test]
async fn a_stranger_with_another_slot_gets_nothing_and_burns_nothing() {
    let mut pac = Pac::new();
    let (stranger, newcomer) = (Newcomer::new(), Newcomer::new());
    let (hosting, mut code) = pac.offer(Role::Member);
    let (right, other, address) = (code.code.clone(), code.other_slot(), pac.address);
    let (_, events, joined) = patiently(async {
        tokio::join!(host::run(hosting), pac.serve(&mut code, YES), async {
            let error = stranger.join(other, address, join::Decision::Accept).await;
            let error = error.expect_err("is not answered");
            assert!(
                matches!(
                    error,
                    JoinError::UnknownSlot { .. } | JoinError::NoAnswer { .. }
                ),
                "{error}"
            );
            newcomer.join(right, address, join::Decision::Accept).await
        })
    })
    .await;
    joined.expect("joins");
    assert!(matches!(last(&events), PairEvent::Enrolled { .. }));
    assert_eq!(pac.members(), 2);
}

#[tokio::test]
async fn who_says_nothing_sensible_does_not_burn_the_code() {
    let mut pac = Pac::new();
    let newcomer = Newcomer::new();
    let (hosting, mut code) = pac.offer(Role::Member);
    let (right, address) = (code.code.clone(), pac.address);
    let (_, events, joined) = patiently(async {
        tokio::join!(host::run(hosting), pac.serve(&mut code, YES), async {
            let silent = net::connect_pairing(address, right.slot())
                .await
                .expect("connects");
            silent.close(net::CloseCode::Done, "").await;
            let babbler = net::connect_pairing(address, right.slot())
                .await
                .expect("connects");
            let (mut send, mut receive) = babbler.connection().open_bi().await.expect("opens");
            net::write_frame(&mut send, vec![0xff; 100], 100)
                .await
                .expect("writes");
            let told = receive.read_to_end(1000).await.expect("is told");
            assert!(
                !told.is_empty() && told.len() < 20,
                "nothing about the pac: {told:?}"
            );
            babbler.close(net::CloseCode::Done, "").await;
            newcomer.join(right, address, join::Decision::Accept).await
        })
    })
    .await;
    joined.expect("joins");
    assert!(matches!(last(&events), PairEvent::Enrolled { .. }));
}

#[tokio::test]
async fn either_user_may_say_no() {
    for (here, there) in [
        (host::Decision::Reject, join::Decision::Accept),
        (YES, join::Decision::Reject),
    ] {
        let mut pac = Pac::new();
        let newcomer = Newcomer::new();
        let (hosting, mut code) = pac.offer(Role::Member);
        let (typed, address) = (code.code.clone(), pac.address);
        let (_, events, joined) = patiently(async {
            tokio::join!(
                host::run(hosting),
                pac.serve(&mut code, here),
                newcomer.join(typed, address, there),
            )
        })
        .await;
        let error = joined.expect_err("does not join");
        match here {
            host::Decision::Reject => {
                assert_eq!(last(&events), &PairEvent::Cancelled);
                assert!(
                    matches!(error, JoinError::Pairing(PairingError::RejectedByPeer)),
                    "{error}"
                );
            }
            host::Decision::Accept(_) => {
                let said = PairEvent::Failed {
                    why: PairingError::RejectedByPeer.to_string(),
                };
                assert_eq!(last(&events), &said);
                assert!(matches!(error, JoinError::RejectedHere), "{error}");
            }
        }
        assert_eq!(pac.members(), 1);
        assert!(!newcomer.home().has_pac().expect("looks"));
    }
}

#[tokio::test]
async fn a_standing_order_makes_no_admin() {
    let mut pac = Pac::new();
    let newcomer = Newcomer::new();
    let (hosting, mut code) = pac.offer(Role::Admin);
    let (typed, address) = (code.code.clone(), pac.address);
    let (_, events, joined) = patiently(async {
        tokio::join!(
            host::run(hosting),
            pac.serve(&mut code, host::Decision::Accept(Consent::Standing)),
            newcomer.join(typed, address, join::Decision::Accept),
        )
    })
    .await;
    joined.expect_err("does not join");
    assert!(
        matches!(last(&events), PairEvent::Failed { .. }),
        "{events:?}"
    );
    assert_eq!(pac.members(), 1);
}

#[tokio::test]
async fn a_home_that_cannot_take_the_welcome_is_told_to_the_host() {
    let mut pac = Pac::new();
    let newcomer = Newcomer::new();
    {
        let lock = newcomer.home().lock().expect("locks");
        home::found(&lock, &options(&newcomer.dir, "phone"), 1, &mut rng()).expect("founds");
    }
    let (hosting, mut code) = pac.offer(Role::Member);
    let (typed, address) = (code.code.clone(), pac.address);
    let (_, events, joined) = patiently(async {
        tokio::join!(
            host::run(hosting),
            pac.serve(&mut code, YES),
            newcomer.join(typed, address, join::Decision::Accept),
        )
    })
    .await;
    let error = joined.expect_err("does not join");
    assert!(
        matches!(error, JoinError::Home(HomeError::AlreadyFounded { .. })),
        "{error}"
    );
    assert!(
        matches!(last(&events), PairEvent::Failed { why } if why.contains("could not finish")),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_cancelled_code_is_gone() {
    let pac = Pac::new();
    let (hosting, mut code) = pac.offer(Role::Member);
    code.cancel.cancel();
    assert_eq!(patiently(host::run(hosting)).await, PairEvent::Cancelled);
    assert_eq!(code.seen.recv().await, Some(PairEvent::Cancelled));
    let newcomer = Newcomer::new();
    let typed = code.code.clone();
    let joined = patiently(newcomer.join(typed, pac.address, join::Decision::Accept)).await;
    joined.expect_err("nobody shows it");
}

#[tokio::test]
async fn a_code_ends_when_its_client_goes_away() {
    let pac = Pac::new();
    let (hosting, code) = pac.offer(Role::Member);
    drop(code);
    assert_eq!(patiently(host::run(hosting)).await, PairEvent::Cancelled);
}

#[tokio::test]
async fn an_old_code_expires_by_the_clock_of_its_offer() {
    let pac = Pac::new();
    let (mut hosting, _code) = pac.offer(Role::Member);
    hosting.now_ms = hosting.offer.expires_ms();
    assert_eq!(patiently(host::run(hosting)).await, PairEvent::Expired);
}
