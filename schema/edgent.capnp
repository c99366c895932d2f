@0xfde72da3093f6785;
# What a device, an edge and the `edgent` tool say to each other, over Cap'n Proto RPC.
#
# Evolution rules, so that neighbouring versions can talk:
#   1. Fields, methods and enumerants are only appended. A number is never reused and never changes
#      its meaning; what is no longer wanted keeps its number and is renamed `obsoleteX`.
#   2. A new field must mean "as before" when it is zero or null: an older peer sends exactly that.
#   3. A new enumerant may be sent only to a peer that is known to understand it. A receiver refuses
#      values it does not know, but for `FaultKind`, where it reads them as `internal`.
#   4. What these rules do not allow raises PROTOCOL_VERSION in host/link. `Gate.hello` is checked by
#      both sides before anything else, so `Gate`, `Hello` and `HelloReply` outlive every version.
#   5. Durations carry their unit in the name. No absolute time is ever sent: clocks differ.
#
# After a change: schema/generate.sh, and commit host/link/src/edgent_capnp.rs with it.

interface Gate {
  # The bootstrap capability: all that a stranger can reach.

  hello @0 (hello :Hello) -> (reply :HelloReply);
}

struct Hello {
  protocol @0 :UInt16;
  role @1 :Role;
  build @2 :Text;         # for people; nothing depends on it
  messageBytes @3 :UInt64;  # the largest message that the sender takes
}

enum Role {
  device @0;
  edge @1;
  tool @2;
}

struct HelloReply {
  hello @0 :Hello;        # always there, so that a refused peer can name both versions
  union {
    host @1 :Host;
    fault @2 :Fault;
  }
}

interface Host {
  describe @0 () -> (outcome :Outcome(Description));
  installPlan @1 (plan :Plan) -> (outcome :Outcome(Done));
  infer @2 (call :UInt64, request :InferRequest) -> (outcome :Outcome(InferReply));
  probe @3 (padding :Data, replyBytes :UInt32) -> (outcome :Outcome(Padding));
  stats @4 () -> (outcome :Outcome(Stats));
  profile @5 (model :Data) -> (outcome :Outcome(ModelProfile));
  ask @6 (call :UInt64, request :AskRequest) -> (outcome :Outcome(Answer));

  cancel @7 (call :UInt64);
  # The caller of the `infer` or `ask` with this number no longer waits. Numbers are the caller's own,
  # unique in a connection. An explicit method, because the `Finish` of an unanswered call makes
  # capnp-rpc 0.27 forget to answer it, and keep its table entry for ever.

  # Versions of models. A digest is the SHA-256 of a manifest or of one of the blobs that it names.

  offer @8 (manifest :Data) -> (outcome :Outcome(Wanted));
  # A bundle's manifest is shown; the host says which of its blobs it has not.

  putBlob @9 (digest :Data, offset :UInt64, bytes :Data) -> (outcome :Outcome(Done));
  # A piece of a blob that an offer found missing. Pieces come in order; the blob is complete when it
  # has its size.

  install @10 (model :Data, trialShare :Float32, trialMs :UInt32) -> (outcome :Outcome(Version));
  # All blobs of a bundle that was offered are there: keep it, prepare it, check it and serve it.
  # Answered when it is in force, or with why it is not. With a share over 0 it is first tried on that
  # share of the requests, for so long.

  rollback @11 (model :Text) -> (outcome :Outcome(Version));
  # To the version before. Empty: the only model.

  versions @12 () -> (outcome :Outcome(Versions));
  manifest @13 (digest :Data) -> (outcome :Outcome(Piece));

  blob @14 (digest :Data, offset :UInt64, maxBytes :UInt32) -> (outcome :Outcome(Piece));
  # At most so many bytes of a blob or a manifest that the host has; none behind its end.

  retire @15 (model :Data) -> (outcome :Outcome(Done));
  # The caller asks for this bundle no more.

  sign @16 (model :Data, signatures :Signatures) -> (outcome :Outcome(Done));
  # Who answers for the bundle that is offered next. A host may offer and install without; whether it is
  # taken then, the host's policy says.

  signatures @17 (model :Data) -> (outcome :Outcome(Signatures));
  # Of a bundle that the host has.

  prepare @18 (model :Data) -> (outcome :Outcome(Version));
  # As install, but it does not come into force: it is there for who asks for it by its digest.

  offerPiece @19 (manifest :Data, total :UInt64, offset :UInt64, bytes :Data) -> (outcome :Outcome(Wanted));
  # As offer, of a manifest by its digest and size that comes in pieces, in order, so that it does not hold
  # up others on a slow link. What is wanted is told with the last piece.

  pin @20 (plan :Plan) -> (outcome :Outcome(Plan));
  # A device runs this plan and no other, where it can be run, until it is told otherwise or another version
  # comes into force; null: it chooses again. Answered with the plan in force when both hosts agree
  # on it, and its epoch. What is told of an epoch is ignored.

  leaving @21 () -> (outcome :Outcome(Done));
  # Answered when the host begins to end. It still answers what is on its way; who can go elsewhere goes now.

  edges @22 () -> (outcome :Outcome(Edges));
  # Those that a device was told of, in its order of preference.

  # The Data of offer, putBlob and offerPiece are the last pointers of their kind, as Activation.bytes is.
}

struct Outcome(T) {
  union {
    ok @0 :T;
    fault @1 :Fault;
  }
}

struct Fault {
  kind @0 :FaultKind;
  message @1 :Text;
}

enum FaultKind {
  internal @0;
  unknownModel @1;
  unknownEpoch @2;
  badRequest @3;
  tooLarge @4;
  timeUp @5;
  busy @6;
  version @7;
  segmentFailed @8;
  unsupported @9;
  shuttingDown @10;
  refused @11;            # a version that was not taken: the message says what is wrong with it
  notFound @12;
  denied @13;             # the caller may not do this here: the message says which right it lacks
}

struct Done {}

struct Padding {
  bytes @0 :Data;
}

enum ElementType {
  f16 @0;
  f32 @1;
  f64 @2;
  bf16 @3;
  u8 @4;
  i32 @5;
  i64 @6;
}

enum Codec {
  raw @0;                 # the elements as they are, little-endian
  u8 @1;                  # one byte an element: value = offset + scale * byte
  # Those below are sent only to who names them in ModelProfile.codecs, or to who asked for them. A
  # device knows every codec that it asks for. None makes an activation larger than `raw` (f16), `u8`
  # (u8Lz4) or `raw` (png, jpeg) would.
  f16 @2;                 # half-precision floats, little-endian; decoded to f32
  u8Lz4 @3;               # u8, its bytes as one LZ4 block without a size before it
  png @4;                 # of a picture: u8, dimensions [1, 3, height, width] or [1, 1, height, width]
  jpeg @5;                # the same, lossy
}

enum Direction {
  deviceFirst @0;
  edgeFirst @1;
}

enum Placement {
  deviceOnly @0;
  split @1;
  edgeOnly @2;
}

struct Activation {
  codec @0 :Codec;
  elementType @1 :ElementType;
  dims @2 :List(UInt32);
  scales @3 :List(Float32);   # u8, u8Lz4: one, or one for each channel (axis 1); the others: none
  offsets @4 :List(Float32);  # as many as scales
  bytes @5 :Data;             # the last of its kind: host/link/src/splice.rs relies on it
}

struct Plan {
  epoch @0 :UInt64;
  model @1 :Data;         # SHA-256 of the bundle's manifest
  exit @2 :UInt16;
  cut @3 :UInt16;         # so many segments of the exit's path run on the first host
  direction @4 :Direction;
  codec @5 :Codec;
}

struct InferRequest {
  id @0 :UInt64;
  model @1 :Data;
  epoch @2 :UInt64;
  fromSegment @3 :UInt16; # of the exit's path
  toSegment @4 :UInt16;   # exclusive
  replyCodec @5 :Codec;
  remainingBudgetUs @6 :UInt64;
  activation @7 :Activation;
  beside @8 :List(Activation);  # the other tensors that cross the same boundary, in its order
  traceparent @9 :Text;   # the sender's span, as W3C's Trace Context writes it; what is none is ignored
}

struct InferReply {
  id @0 :UInt64;
  epoch @1 :UInt64;
  activation @2 :Activation;
  queueUs @3 :UInt64;
  segmentUs @4 :List(UInt32);
  codecUs @5 :UInt64;
  beside @6 :List(Activation);  # as in InferRequest
}

struct AskRequest {
  id @0 :UInt64;
  model @1 :Text;         # empty: the only one
  deadlineUs @2 :UInt64;  # 0: the host's default
  input @3 :Activation;
  beside @4 :List(Activation);  # the model's other inputs, in the order of ModelDescription.inputs
  accuracyFloor @5 :Float64;    # the lowest measured accuracy of an exit that may answer; an older host takes any
  traceparent @6 :Text;         # as in InferRequest
}

struct Answer {
  id @0 :UInt64;
  label @1 :UInt32;
  scores @2 :List(Float32);
  exit @3 :UInt16;
  cut @4 :UInt16;
  direction @5 :Direction;
  codec @6 :Codec;        # raw or u8; raw if codecName tells another
  placement @7 :Placement;
  latencyUs @8 :UInt64;
  deadlineUs @9 :UInt64;
  deadlineMet @10 :Bool;
  degraded @11 :Text;     # why; null: it was not
  epoch @12 :UInt64;
  rateBps @13 :UInt64;    # the device's estimate of the link
  predictedUs @14 :UInt64;  # what the plan was predicted to take; 0: unknown, or not as planned
  inTime @15 :Float32;    # how likely the plan was to be in time, from 0 to 1
  codecName @16 :Text;    # null: as `codec` says. A name, for who asks may not know the enumerant
  model @17 :Data;        # SHA-256 of the manifest of the bundle that answered; null: not told
  outputs @18 :List(Activation);  # of a model without classes: what the exit gives, raw, in the order of
                                  # ExitDescription.outputs; label and scores are none then
}

struct Description {
  models @0 :List(ModelDescription);
}

struct ModelDescription {
  name @0 :Text;
  digest @1 :Data;
  inputType @2 :ElementType;
  inputDims @3 :List(UInt32);
  classes @4 :List(Text);
  exits @5 :List(ExitDescription);
  inputs @6 :List(TensorDescription);  # null: one, as inputType and inputDims say; they are the first's
  obsoletePortableSegments @7 :UInt32;
  computed @8 :List(Computed);         # who computes the segments that are held here; null: not told
}

struct Computed {
  # How many segments are computed by one backend, on at most so many threads.

  backend @0 :Text;       # "tract", "onnxruntime" or "portable"; a later version's may not be known to who asks
  threads @1 :UInt16;
  segments @2 :UInt32;
}

struct TensorDescription {
  name @0 :Text;
  elementType @1 :ElementType;
  dims @2 :List(UInt32);
}

struct ExitDescription {
  name @0 :Text;
  accuracy @1 :Float64;
  segments @2 :List(Text);
  outputs @3 :List(TensorDescription); # null: one, with an element for each class
}

struct ModelProfile {
  model @0 :Data;
  segments @1 :List(SegmentTime);
  queueUs @2 :Float64;
  codecUsPerMib @3 :Float64;  # of u8, a mebibyte on the wire: half of what coding and decoding take
  codecs @4 :List(CodecTime); # those that the host takes; null: raw and u8
}

struct CodecTime {
  name @0 :Text;          # as the enumerants are called, with hyphens: a device ignores those it does not know
  encodeUsPerMib @1 :Float64; # for each mebibyte that the activation has as it is, however little it becomes
  decodeUsPerMib @2 :Float64;
}

struct SegmentTime {
  segment @0 :UInt16;
  p50Us @1 :Float64;
  p90Us @2 :Float64;
  samples @3 :UInt32;
}

struct Stats {
  uptimeMs @0 :UInt64;
  requests @1 :UInt64;
  answered @2 :UInt64;
  errors @3 :UInt64;
  deadlineMet @4 :UInt64;
  degraded @5 :UInt64;
  planChanges @6 :UInt64;
  callsInFlight @7 :UInt64;
  connections @8 :UInt64;
  connectionsRefused @9 :UInt64;
  protocolErrors @10 :UInt64;
  bytesIn @11 :UInt64;
  bytesOut @12 :UInt64;
  rateBps @13 :UInt64;
  rttUs @14 :UInt64;
  tensorBytesCopied @15 :UInt64;
  faults @16 :UInt64;          # of segments: what their guests or graphs did wrong
  quarantined @17 :UInt64;     # versions that are not run any more for it
  now @18 :Now;                # null: not told
}

struct Now {
  # What a host does at this moment, as far as its counters do not tell.

  deadlineUs @0 :UInt64;  # of who names none
  plan @1 :RunningPlan;   # null: the host makes no plans
  edgeConfigured @2 :Bool;
  edgeConnected @3 :Bool;
  answers @4 :UInt32;     # of so many of the last answers:
  p50Us @5 :UInt64;       # their latencies
  p99Us @6 :UInt64;
  exits @7 :List(UInt32); # how many of them each exit gave, in the order of ModelDescription.exits
}

struct RunningPlan {
  # What the next request would be planned with.

  exit @0 :UInt16;
  cut @1 :UInt16;
  direction @2 :Direction;
  placement @3 :Placement;
  codec @4 :Text;         # its name: who asks may not know the enumerant
  epoch @5 :UInt64;
  predictedUs @6 :UInt64; # 0: unknown
  inTime @7 :Float32;     # how likely it is to be in time, from 0 to 1
}

struct Wanted {
  blobs @0 :List(BlobName);
}

struct BlobName {
  digest @0 :Data;        # SHA-256 of the blob
  bytes @1 :UInt64;
}

struct Version {
  model @0 :Text;
  version @1 :UInt64;
  digest @2 :Data;        # SHA-256 of the bundle's manifest
  current @3 :Bool;       # new requests run on it
  previous @4 :Bool;      # a rollback leads to it
  commitUs @5 :UInt64;    # how long requests could not begin while it came into force; 0 in lists
  onTrial @6 :Bool;       # some requests run on it, to see whether it is any good
  quarantined @7 :Bool;   # its segments failed again and again: it is not run here any more
}

struct Versions {
  versions @0 :List(Version);
}

struct Piece {
  bytes @0 :Data;         # the last of its kind: host/link/src/splice.rs relies on it
}

struct Signatures {
  signatures @0 :List(Signature);
}

struct Signature {
  statement @0 :Data;     # the text that is signed: it names the manifest's digest, the model and its version
  minisig @1 :Data;       # the signature of that text, as the file that minisign reads
}

struct Edges {
  edges @0 :List(EdgeState);
}

struct EdgeState {
  address @0 :Text;
  connected @1 :Bool;     # and has the version in force
  inForce @2 :Bool;       # plans are agreed on with it
  agreed @3 :Bool;        # it knows the plan in force, so a request may be sent there at once
  strikes @4 :UInt32;     # what went wrong with it since the last thing that went well
  rateBps @5 :UInt64;     # the device's estimate of the link to it; 0: unknown
  rttUs @6 :UInt64;
}
