//! One subscription on one Subscribe stream.
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use crate::{
    PATIENCE, Result,
    api::{
        CloseSubscription, Credit, DeliveredBatch, GrantCredit, OffsetRange, OpenSubscription, Opened, Outcome, Settle,
        SubscribeRequest, SubscribeResponse, settle::Action, subscribe_request::Command, subscribe_response::Event,
        subscriber_service_client::SubscriberServiceClient,
    },
    check,
};

pub struct Subscriber {
    requests: mpsc::Sender<SubscribeRequest>,
    responses: Streaming<SubscribeResponse>,
    subscription_id: u32,
    settlements: u64,
    /// Messages of answered settlements, with the outcome.
    answered: Vec<(Outcome, u64)>,
}

impl Subscriber {
    pub async fn connect(connection: &Channel, open: OpenSubscription) -> Result<Self> {
        let (requests, queue) = mpsc::channel(64);
        let subscription_id = open.subscription_id;
        requests.send(SubscribeRequest { command: Some(Command::Open(open)) }).await?;
        let mut client = SubscriberServiceClient::new(connection.clone());
        let call = client.subscribe(ReceiverStream::new(queue));
        let responses = timeout(PATIENCE, call).await??.into_inner();
        Ok(Self { requests, responses, subscription_id, settlements: 0, answered: Vec::new() })
    }

    pub async fn send(&self, command: Command) -> Result<()> {
        Ok(self.requests.send(SubscribeRequest { command: Some(command) }).await?)
    }

    /// The next event, heartbeats included; answers to settlements are noted as they pass.
    async fn next(&mut self) -> Result<Event> {
        let response = timeout(PATIENCE, self.responses.message()).await??.ok_or("the stream ended early")?;
        let event = response.event.ok_or("a response without event")?;
        if let Event::Settled(settled) = &event {
            check!(settled.failure.is_none(), "a settlement failed: {settled:?}");
            for result in &settled.results {
                let range = result.range.ok_or("an outcome without range")?;
                self.answered.push((result.outcome(), range.last - range.first + 1));
            }
        }
        Ok(event)
    }

    /// The next event that is neither a heartbeat nor the answer to a settlement.
    pub async fn event(&mut self) -> Result<Event> {
        loop {
            match self.next().await? {
                Event::Heartbeat(_) | Event::Settled(_) => {}
                event => return Ok(event),
            }
        }
    }

    pub async fn opened(&mut self) -> Result<Opened> {
        match self.event().await? {
            Event::Opened(opened) => Ok(opened),
            event => Err(format!("expected `opened`, got {event:?}").into()),
        }
    }

    pub async fn deliver(&mut self) -> Result<Vec<DeliveredBatch>> {
        match self.event().await? {
            Event::Deliver(deliver) => Ok(deliver.batches),
            event => Err(format!("expected `deliver`, got {event:?}").into()),
        }
    }

    /// Waits for a heartbeat; a delivery before it is an error.
    pub async fn silence(&mut self) -> Result<()> {
        match self.next().await? {
            Event::Heartbeat(_) => Ok(()),
            event => Err(format!("expected silence, got {event:?}").into()),
        }
    }

    pub async fn grant(&self, messages: u64) -> Result<()> {
        let credit = Some(Credit { messages, bytes: 1 << 40 });
        self.send(Command::Credit(GrantCredit { subscription_id: self.subscription_id, credit })).await
    }

    pub async fn settle(&mut self, ranges: Vec<OffsetRange>, action: Action) -> Result<()> {
        self.settlements += 1;
        let settle = Settle {
            subscription_id: self.subscription_id,
            correlation: self.settlements,
            ranges,
            action: Some(action),
            ..Default::default()
        };
        self.send(Command::Settle(settle)).await
    }

    /// Waits until the settlements of `messages` messages are answered, all with this outcome.
    pub async fn settled(&mut self, outcome: Outcome, messages: u64) -> Result<u64> {
        while self.answered.iter().map(|(_, count)| count).sum::<u64>() < messages {
            let event = self.next().await?;
            check!(matches!(event, Event::Settled(_) | Event::Heartbeat(_)), "expected `settled`, got {event:?}");
        }
        let answered = std::mem::take(&mut self.answered);
        check!(answered.iter().all(|(got, _)| *got == outcome), "not all {outcome:?}: {answered:?}");
        Ok(answered.iter().map(|(_, count)| count).sum())
    }

    /// Closes the subscription; the stream goes on.
    pub async fn close(&mut self) -> Result<()> {
        self.send(Command::Close(CloseSubscription { subscription_id: self.subscription_id })).await?;
        match self.event().await? {
            Event::Closed(closed) if closed.failure.is_none() => Ok(()),
            event => Err(format!("expected `closed`, got {event:?}").into()),
        }
    }

    /// Half-closes; the server must end the stream with OK.
    pub async fn finish(self) -> Result<()> {
        let Self { requests, mut responses, .. } = self;
        drop(requests);
        while let Some(response) = timeout(PATIENCE, responses.message()).await?? {
            let harmless = matches!(response.event, Some(Event::Heartbeat(_) | Event::Closed(_)));
            check!(harmless, "{response:?} after the half-close");
        }
        Ok(())
    }
}
