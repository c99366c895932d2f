//! scratch
use edgent_nn::*; use edgent_sandbox::*; use std::time::*;
fn main(){ let e=Engine::new().unwrap(); let c=e.compile(include_bytes!("../../../guest-layers/prebuilt/segment.wasm")).unwrap();
 for n in [4usize,1<<10,64<<10,1<<20,16<<20]{ let f=Fact::new(ElementType::U8,&[n]).unwrap(); let g=Graph::identity("x",&f).unwrap();
  let s=Segment::new(&e,"x",&c,g.clone(),Limits::default()).unwrap(); let t=Tensor::from_bytes(ElementType::U8,&[n],&vec![1;n]).unwrap();
  let stop=Stop::at(Instant::now()+Duration::from_secs(100)); let mut ctx=g.context().unwrap(); let before=bytes_copied(); let mut a=vec![];let mut b=vec![];
  for _ in 0..20000{ let t0=Instant::now(); std::hint::black_box(s.run(t.clone(),&stop).unwrap()); a.push(t0.elapsed().as_nanos());
   let t0=Instant::now(); std::hint::black_box(ctx.compute(vec![("x".into(),t.clone())],&stop).unwrap()); b.push(t0.elapsed().as_nanos()); }
  a.sort();b.sort(); println!("{n:>9} B  sandbox p50 {} p99 {}  direct p50 {} p99 {} ns, copied {}",a[10000],a[19800],b[10000],b[19800],bytes_copied()-before);} }
